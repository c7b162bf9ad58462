"""Chains of half the steps, on Gaussian data: they start and end where the long chain does."""

from __future__ import annotations

import numpy as np
import pytest

from calib.walk.fewer_steps import OTHER_SAMPLER, FewerSteps, fewer_steps
from calib.walk.fitted_schedule import uncorrected_schedule
from engines.arrays import Float32
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import SamplerRecord, Schedule
from engines.samplers import NoiseSchedule
from tests.calib.walk.gaussian_walk import SHAPE, Exact

NUMBERS = np.arange(8, dtype=np.int64)


def _ddim(steps: int, eta: float = 0.0) -> Schedule:
    sampler = SamplerRecord(name="ddim", steps=steps, eta=eta, guidance=1.0)
    return uncorrected_schedule(sampler, sampler.table(NoiseSchedule(clip_sample=False)), "fp32")


def _ends(schedule: Schedule) -> Float32:
    return Chain(schedule, {"fp32": Exact(), "w8a8": Exact()}).sample(NoiseSource(3, SHAPE), NUMBERS, np.zeros_like(NUMBERS))


def test_shorter_chains_end_near_the_long_one_and_nearer_the_longer_they_are() -> None:
    errors = dict[int, list[float]]()
    for steps in (20, 160):
        long = _ddim(steps)
        found = fewer_steps(long, NoiseSchedule(clip_sample=False), ["fp32", "w8a8"])
        assert {*found} == {FewerSteps(name, steps // 2, p) for name in ("ddim", OTHER_SAMPLER) for p in ("fp32", "w8a8")}
        assert all({step.precision for step in chain.steps} == {one.precision} for one, chain in found.items())
        errors[steps] = [float(np.square(np.subtract(_ends(chain), _ends(long))).mean()) for chain in found.values()]
    assert all(0 < later < earlier / 4 for earlier, later in zip(errors[20], errors[160], strict=True))


@pytest.mark.parametrize("long", [_ddim(20, eta=1.0), _ddim(1)])
def test_chains_with_fresh_noise_or_a_single_step_have_none(long: Schedule) -> None:
    assert fewer_steps(long, NoiseSchedule(clip_sample=False), ["fp32"]) == {}


def test_a_sampler_that_cannot_take_half_the_steps_is_left_out() -> None:
    """DPM-Solver++ has noise levels of its own, and a flow that ends at a terminal level takes two steps or more."""
    karras = NoiseSchedule(prediction_type="flow", clip_sample=False, shift=3.0, use_karras_sigmas=True)
    terminal = NoiseSchedule(prediction_type="flow", clip_sample=False, shift=3.0, shift_terminal=0.1)
    assert {*fewer_steps(_flow(8, karras), karras, ["fp32"])} == {FewerSteps("flow-euler", 4, "fp32")}
    assert {*fewer_steps(_flow(3, terminal), terminal, ["fp32"])} == {FewerSteps(OTHER_SAMPLER, 1, "fp32")}


def _flow(steps: int, noise_schedule: NoiseSchedule) -> Schedule:
    sampler = SamplerRecord(name="flow-euler", steps=steps, eta=0.0, guidance=1.0)
    return uncorrected_schedule(sampler, sampler.table(noise_schedule), "fp32")
