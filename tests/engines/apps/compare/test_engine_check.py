"""Engines whose SNR is known in closed form: `q = (1 + d) e` has one of -20 log10 d, whatever the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from engines.apps.compare.engine_check import RUNTIME_DB, SAMPLING_DB, DepartureError, EngineCheck, check_engines
from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Schedule
from engines.errors import PtqdError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

STEPS = 4


@dataclass(frozen=True)
class Scaled:
    """`(1 + d) 0.7 x` on both branches, with a `d` of its own for some timesteps."""

    d: float
    at: Mapping[float, float]

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        out = np.float32((1 + self.at.get(timestep, self.d)) * 0.7) * x
        return np.stack([out, out])


@pytest.fixture
def schedule(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


def check(schedule: Schedule, w8a8: Scaled, samples: int = 6) -> EngineCheck:
    """Statistics that were measured on w8a8 with 40 dB and on w4a8 with 20 dB."""
    return EngineCheck(
        schedule=schedule,
        reference="fp32",
        networks={"fp32": Scaled(0, {}), "w8a8": w8a8, "w4a8": Scaled(0.1, {})},
        expected={"w8a8": [40.0] * STEPS, "w4a8": [20.0] * STEPS},
        noise=NoiseSource(9, (1, 8, 8)),
        rows=np.zeros(samples, dtype=np.int64),
        batch_size=4,
    )


@pytest.mark.parametrize("trajectory", ["quantized", "fp"])
def test_engines_of_the_statistics_pass(schedule: Schedule, trajectory: Literal["quantized", "fp"]) -> None:
    assert check_engines(replace(check(schedule, Scaled(0.01, {})), trajectory=trajectory)) < 1e-3


def test_wrong_engine_is_refused_with_both_figures(schedule: Schedule) -> None:
    with pytest.raises(PtqdError, match="The engine of w8a8 is not the one") as error:
        check_engines(check(schedule, Scaled(0.02, {})))
    assert "found:    SNR 33.98 dB at step 0" in str(error.value)
    assert "expected: 40.00 dB, within 0.25 dB" in str(error.value)


def test_better_engine_is_another_engine(schedule: Schedule) -> None:
    with pytest.raises(PtqdError, match="w8a8"):
        check_engines(check(schedule, Scaled(0.001, {})))


def test_fault_of_late_timesteps_is_seen(schedule: Schedule) -> None:
    with pytest.raises(PtqdError, match=r"SNR 13\.98 dB at step 3"):
        check_engines(check(schedule, Scaled(0.01, {schedule.steps[3].timestep: 0.2})))


def test_what_nothing_was_quantized_in_must_stay_so(schedule: Schedule) -> None:
    same = replace(check(schedule, Scaled(0, {})), expected={"w8a8": [None] * STEPS})
    assert check_engines(same) == 0
    with pytest.raises(PtqdError, match="inf dB"):
        check_engines(replace(same, networks={**same.networks, "w8a8": Scaled(0.01, {})}))


def test_snr_of_rounding_need_only_stay_above_it(schedule: Schedule) -> None:
    """60 dB where the statistics have 90 dB are rounding both; 45 dB are not."""
    rounded = replace(check(schedule, Scaled(0.001, {})), expected={"w8a8": [90.0] * STEPS}, rounding_db=50.0)
    assert check_engines(rounded) == 0
    assert check_engines(replace(rounded, expected={"w8a8": [None] * STEPS})) == 0
    worse = replace(rounded, networks={**rounded.networks, "w8a8": Scaled(10 ** (-45 / 20), {})})
    with pytest.raises(DepartureError, match=r"(?s)SNR 45\.00 dB at step 0.*50\.00 dB or more, within") as error:
        check_engines(worse)
    assert error.value.precision == "w8a8"


def test_every_sample_counts_at_the_first_step_and_some_at_others(schedule: Schedule) -> None:
    """One sample more than are walked has the fault: the first step tells it, and other steps have room for sampling error."""
    many = check(schedule, Scaled(0.01, {}), samples=40)
    assert [(len(numbers), steps) for numbers, steps in many.pieces] == [(4, 4)] * 8 + [(4, 1)] * 2
    room = RUNTIME_DB + SAMPLING_DB * (1 / 32 - 1 / 40) ** 0.5
    late = schedule.steps[1].timestep
    for decibels, fits in ((room - 0.05, True), (room + 0.05, False)):
        changed = replace(many, networks={**many.networks, "w8a8": Scaled(0.01, {late: 0.01 * 10 ** (decibels / 20)})})
        if fits:
            assert check_engines(changed) == pytest.approx(decibels, abs=1e-3)
        else:
            with pytest.raises(PtqdError, match="at step 1"):
                check_engines(changed)
