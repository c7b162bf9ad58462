"""Noise schedules from the numbers of a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from engines.samplers.levels.alphas import alpha_bar
from ptqd_export.models.onnx_graph.graph_schedule import noise_schedule, own_sampler
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
