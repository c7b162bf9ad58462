"""Schedules of every sampler for one bundle: walked, sampled, and refitted where the stored moments say enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.errors import UsageError
from engines.networks.engine_bank import EngineBank
from engines.samplers import SAMPLERS, compile_sampler
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

OTHERS = [name for name, sampler in SAMPLERS.items() if name != "ddim" and sampler.predictions != ("flow",)]
LOOKING_BACK = ["plms", "dpm++2m", "dpm++2m-sde", "unipc2", "unipc3", "deis2", "deis3", "heun"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_schedule_of_another_sampler_is_walked_and_sampled(name: str, built_tiny: TinyBundle) -> None:
    added = add_schedule(built_tiny.folder, "other", ScheduleRequest(sampler=name, steps=5))
    bundle = Bundle.open(built_tiny.folder)
    schedule, table = bundle.schedule("other"), compile_sampler(name, 5, SAMPLERS[name].eta, bundle.manifest.model.noise_schedule)
    assert added.fit == "walk"
    assert (schedule.sampler.name, schedule.sampler.steps, schedule.sampler.eta) == (name, 5, SAMPLERS[name].eta)
    assert len(schedule.steps) == SAMPLERS[name].rows(5)
    assert schedule.init_sigma == table.init_sigma
    for step in schedule.steps:
        row = table.step(step.step)
        assert (step.timestep, step.input_scale, step.sigma, step.clip) == (row.timestep, row.input_scale, row.sigma, row.clip)
        assert (step.x_coeff, step.out_coeff, step.history_coeffs) == (row.x_coeff, row.out_coeff, row.history_coeffs)
    samples = np.arange(4, dtype=np.int64)
    chain = Chain(schedule, EngineBank(bundle, schedule.sampler.guidance, threads=1))
    noise = NoiseSource(5, bundle.manifest.model.sample_shape)
    drawn = chain.sample(noise, samples, samples % 2)
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(chain.sample(noise, samples[2:], samples[2:] % 2), drawn[2:], atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_what_follows_from_the_moments_of_its_walk(name: str, built_tiny: TinyBundle) -> None:
    """All but the variance of steps that clip or look back, which is measured on a walk."""
    add_schedule(built_tiny.folder, "walked", ScheduleRequest(sampler=name, steps=5))
    walked, again = Bundle.open(built_tiny.folder).schedule("walked"), ScheduleRequest(base="walked", mode="signed", fit="moments")
    if name in LOOKING_BACK or any(step.clip for step in walked.steps):
        with pytest.raises(UsageError, match=r"steps with clipping or history"):
            add_schedule(built_tiny.folder, "again", again)
    else:
        refitted = add_schedule(built_tiny.folder, "again", again).schedule
        assert [step.x_coeff for step in refitted.steps] == [step.x_coeff for step in walked.steps]
        assert any(step.sigma > 0 for step in refitted.steps) == (SAMPLERS[name].eta > 0)
