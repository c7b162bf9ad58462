"""A bundle's scheduler beside the one of diffusers that it stands in for, at few steps, with the exact network of Gaussian data.

With `x0 ~ N(M, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) M) / (a S^2 + 1 - a)` in a state `x = sqrt(a) x0 + sqrt(1 - a) eps`.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.chain.step import Move
from engines.errors import UsageError
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable, compile_sampler
from ptqd_export.diffusers import PtqdScheduler

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

M, S = 0.4, 0.6
SHAPE = (2, 3, 4, 4)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
SCHEDULERS: list[tuple[str, str, dict[str, Any]]] = [
    ("lcm", "LCMScheduler", {}),
    ("tcd", "TCDScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("unipc2", "UniPCMultistepScheduler", {}),
    ("unipc3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ("deis2", "DEISMultistepScheduler", {}),
    ("deis3", "DEISMultistepScheduler", {"solver_order": 3}),
    ("dpm++2m", "DPMSolverMultistepScheduler", FLOW),
    ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
]
NOTHING = Correction(gain=(1.0,), offset=(0.0,), state_gain=(0.0,), sigma_corrected=0.0, residual_variance=0.0, unabsorbed_variance=0.0)


def schedule_of(table: SamplerTable, steps: int, eta: float) -> Schedule:
    """The plain sampler as the schedule of a bundle."""
    rows = [{name: value for name, value in vars(table.step(i)).items() if name in Step.model_fields} for i in range(table.steps)]
    return Schedule(
        sampler=SamplerRecord(name=table.name, steps=steps, eta=eta, guidance=1.0),
        correction=CorrectionRecord(mode="none", variance="none"),
        policy="fixed",
        init_sigma=table.init_sigma,
        steps=tuple(Step(step=i, precision="fp32", corrections={"fp32": NOTHING}, **row) for i, row in enumerate(rows)),
    )


def output(scaled: Tensor, a: float, flow: bool) -> Tensor:
    """The exact network at states of which the clean sample's share of the variance is `a`: the noise, or the velocity of a flow."""
    alpha, sigma = math.sqrt(a), math.sqrt(1 - a)
    x = scaled * (alpha + sigma) if flow else scaled  # a flow's state is that of unit variance divided by the sum
    eps = sigma * (x - alpha * M) / (a * S**2 + 1 - a)
    return eps - (x - sigma * eps) / alpha if flow else eps


def walk(scheduler: Any, steps: int, table: SamplerTable, flow: bool, **options: Any) -> Tensor:
    """The end of a chain, as a pipeline takes it."""
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == table.steps
    x: Tensor = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    fresh = {"generator": torch.Generator().manual_seed(2)} if table.sigma.any() else {}
    for t, a in zip(scheduler.timesteps, table.alpha_bar.tolist(), strict=True):
        x = scheduler.step(output(scheduler.scale_model_input(x, t), a, flow), t, x, **fresh, **options).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("name", "scheduler", "options"), SCHEDULERS, ids=[name for name, *_ in SCHEDULERS])
def test_the_chain_of_a_bundle_is_that_of_its_model_s_scheduler(name: str, scheduler: str, options: dict[str, Any], steps: int) -> None:
    theirs, eta = getattr(diffusers, scheduler)(**BETAS | options), SAMPLERS[name].eta
    trained = NoiseSchedule.from_scheduler_config({"_class_name": scheduler, **theirs.config})
    flow = trained.prediction_type == "flow"
    table = compile_sampler(name, steps, eta, trained, theirs.alphas_cumprod.double().numpy())
    schedule = schedule_of(table, steps, eta)
    ours = PtqdScheduler(trained, schedule, tuple(Move.plain(step, "fp32", 1.0) for step in schedule.steps))
    found, expected = walk(ours, steps, table, flow), walk(theirs, steps, table, flow)
    assert float((found - expected).abs().max()) <= 1e-5
    assert float(expected.mean()) == pytest.approx(M, abs=0.15)
    assert steps < 4 or float(expected.std()) == pytest.approx(S, rel=0.6), "the data, coarsely"


def test_tcd_takes_no_other_share_of_noise_than_the_schedule_s() -> None:
    table = compile_sampler("tcd", 2, 0.3, NoiseSchedule())
    schedule = schedule_of(table, 2, 0.3)
    scheduler = PtqdScheduler(NoiseSchedule(), schedule, tuple(Move.plain(step, "fp32", 1.0) for step in schedule.steps))
    with pytest.raises(UsageError, match="for another eta"):
        walk(scheduler, 2, table, False, eta=0.0)


def test_a_flow_from_an_image_starts_as_in_diffusers() -> None:
    trained = NoiseSchedule(prediction_type="flow", clip_sample=False, shift=3.0)
    table = compile_sampler("flow-euler", 4, 0.0, trained)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(4)
    moves = tuple(Move.plain(step, "fp32", 1.0) for step in schedule_of(table, 4, 0.0).steps)
    ours = PtqdScheduler(trained, schedule_of(table, 4, 0.0), moves)
    image, noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(3))
    at = theirs.timesteps[1].repeat(len(image))
    expected = theirs.scale_noise(image, at, noise)
    torch.testing.assert_close(ours.scale_noise(image, at, noise), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.add_noise(image, noise, at), expected, rtol=0, atol=1e-6)
    with pytest.raises(UsageError, match="does not visit this timestep"):
        ours.scale_noise(image, at + 1, noise)


def test_only_flows_mix_noise_by_their_timestep() -> None:
    schedule = schedule_of(compile_sampler("ddim", 2, 0.0, NoiseSchedule(clip_sample=False)), 2, 0.0)
    scheduler = PtqdScheduler(NoiseSchedule(), schedule, ())
    with pytest.raises(UsageError, match="scale_noise of a model with prediction_type epsilon"):
        scheduler.scale_noise(torch.zeros(SHAPE), torch.tensor([0, 0]), torch.zeros(SHAPE))


def by_angles(scheduler: Any) -> Tensor:
    """Return the states of a chain and the clean sample at its end, as SanaSprintPipeline walks it with the exact network."""
    generator, data = torch.Generator().manual_seed(1), scheduler.config.sigma_data
    x = data * torch.randn(SHAPE, generator=generator)
    scheduler.set_begin_index(0)
    found = []
    for t in scheduler.timesteps[:-1]:
        sigma = torch.sin(t) / (torch.sin(t) + torch.cos(t))
        norm = torch.sqrt(sigma**2 + (1 - sigma) ** 2)
        state = x / data * norm
        noise = (state - (1 - sigma) * M) / ((1 - sigma) ** 2 * S**2 + sigma**2)
        out = sigma * noise - (M + (1 - sigma) * S**2 * noise)
        velocity = ((1 - 2 * sigma) * state + (1 - 2 * sigma + 2 * sigma**2) * out) / norm * data
        x, clean = scheduler.step(velocity, t.expand(len(x)), x, generator=generator, return_dict=False)
        found.append(x / data)
    return torch.stack([*found, clean / data])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_chain_of_scm_walks_by_angles_as_that_of_diffusers(steps: int) -> None:
    theirs = diffusers.SCMScheduler()
    angles: dict[str, Any] = {"max_timesteps": 1.5708, "intermediate_timesteps": 1.3 if steps == 2 else None}
    trained = NoiseSchedule.from_scheduler_config({"_class_name": "SCMScheduler", **theirs.config})
    schedule = schedule_of(compile_sampler("scm", steps, SAMPLERS["scm"].eta, trained), steps, SAMPLERS["scm"].eta)
    ours = PtqdScheduler(trained, schedule, tuple(Move.plain(step, "fp32", 1.0) for step in schedule.steps))
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps, **angles)
    expected = by_angles(theirs)
    assert steps == 1 or float(expected[0].std()) > 0.2, "the state is still noisy"
    torch.testing.assert_close(by_angles(ours), expected, rtol=0, atol=1e-4)
    with pytest.raises(UsageError, match="other angles"):
        ours.set_timesteps(steps, max_timesteps=1.2)
