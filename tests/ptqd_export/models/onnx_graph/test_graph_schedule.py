"""Noise schedules from the numbers of a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from engines.chain.update import update
from engines.errors import UsageError
from engines.samplers import compile_sampler
from engines.samplers.levels.alphas import alpha_bar
from ptqd_export.models.onnx_graph.graph_schedule import noise_schedule, own_sampler, preconditioning_of
from ptqd_export.models.onnx_graph.onnx_adapter import Convention, OnnxAdapter
from ptqd_export.plan.graph_section import GraphSection, NoiseSection


def test_cumulative_alphas_are_kept(tmp_path: Path) -> None:
    alphas = (0.99, 0.7, 0.2, 0.01)
    section = GraphSection(schedule=NoiseSection(alphas_cumprod=alphas, num_train_timesteps=4))
    np.testing.assert_allclose(alpha_bar(noise_schedule(section, tmp_path)), alphas, rtol=1e-12)


def test_levels_of_sigmas_are_even_in_their_logarithm(tmp_path: Path) -> None:
    section = GraphSection(schedule=NoiseSection(sigma_min=0.01, sigma_max=100.0, num_train_timesteps=5))
    schedule = noise_schedule(section, tmp_path)
    np.testing.assert_allclose(np.sqrt(1 / alpha_bar(schedule) - 1), [0.01, 0.1, 1, 10, 100], rtol=1e-9)
    assert (schedule.prediction_type, schedule.clip) == ("sample", None)
    assert own_sampler(section, tmp_path)[0] == "heun"


def test_a_scheduler_s_file_says_more_than_numbers(tmp_path: Path) -> None:
    config = {"_class_name": "LCMScheduler", "prediction_type": "v_prediction", "original_inference_steps": 20}
    (tmp_path / "s.json").write_text(json.dumps(config))
    schedule = noise_schedule(GraphSection(scheduler="s.json"), tmp_path)
    assert (schedule.prediction_type, schedule.original_inference_steps, schedule.beta_schedule) == ("v_prediction", 20, "scaled_linear")
    assert own_sampler(GraphSection(scheduler="s.json"), tmp_path)[:2] == ("lcm", 4)
    assert noise_schedule(GraphSection(scheduler="s.json", predicts="epsilon"), tmp_path).prediction_type == "epsilon"


@pytest.mark.parametrize(("name", "value"), [("sigma_data", 0.25), ("predicts", "epsilon")])
def test_a_plan_may_repeat_an_edm_scheduler_s_numbers_but_not_contradict_them(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler", "sigma_data": 0.75}))
    section = GraphSection(scheduler="s.json", sigma_data=0.75, predicts="sample")
    assert preconditioning_of(section, tmp_path) == ("edm", 0.75, False)
    with pytest.raises(UsageError, match=rf"model.graph.{name} = {value}, beside s.json"):
        preconditioning_of(section.model_copy(update={name: value}), tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "sampler"),
    [
        ("EDMEulerScheduler", {"sigma_schedule": "exponential"}, "euler"),
        ("EDMEulerScheduler", {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "prediction_type": "v_prediction"}, "euler"),
        ("EDMDPMSolverMultistepScheduler", {}, "dpm++2m"),
    ],
)
def test_edm_schedulers_walk_as_in_diffusers(tmp_path: Path, name: str, settings: dict[str, Any], sampler: str) -> None:
    """The bare network of the paper, called by the adapter, against diffusers' scheduler, which has the factors inside."""
    scheduler = getattr(diffusers, name)(**settings)
    (tmp_path / "s.json").write_text(scheduler.to_json_string())
    section, steps = GraphSection(scheduler="s.json"), 6
    schedule = noise_schedule(section, tmp_path)
    assert own_sampler(section, tmp_path)[0] == sampler

    def network(x: Any, c_noise: Any) -> torch.Tensor:
        found: torch.Tensor = torch.tanh(x - 0.3 * torch.roll(x, 1, -1)) * (1 + 0.1 * torch.as_tensor(c_noise).reshape(-1, 1, 1, 1))
        return found

    class Bare(nn.Module):
        forward = staticmethod(network)

    bare: Any = Bare()
    adapter = OnnxAdapter(bare, {}, Convention(schedule, "c_noise", "added", *preconditioning_of(section, tmp_path)))
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    table = compile_sampler(sampler, steps, 0.0, schedule)
    start = 1.0 if sampler == "euler" else scheduler.init_noise_sigma  # the other's states have unit variance
    state, history, scheduled = x.numpy() / start, list[Any](), x
    scheduler.set_timesteps(steps)
    for index, t in enumerate(scheduler.timesteps):
        step = table.step(index)
        taken = torch.from_numpy(step.input_scale * state)
        out = adapter(taken, torch.full((2,), step.timestep, dtype=torch.float64)).numpy()
        state, history = update(state, out, step, history)
        scaled = scheduler.scale_model_input(scheduled, t)
        scheduled = scheduler.step(network(scaled, t.expand(2)), t, scheduled).prev_sample
    np.testing.assert_allclose(state, scheduled.numpy(), atol=2e-4)
