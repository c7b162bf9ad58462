"""Levels and shifts that pipelines ask a scheduler for."""

from __future__ import annotations

import numpy as np
import pytest

from engines.chain.schedule import SamplerRecord
from engines.errors import UsageError
from engines.samplers import NoiseSchedule
from ptqd_export.diffusers.asked_levels import check_levels, check_mu

CHOSEN = (1.0, 0.8, 0.3)


def record(sigmas: tuple[float, ...] | None) -> SamplerRecord:
    return SamplerRecord(name="flow-euler", steps=3, eta=0.0, guidance=1.0, sigmas=sigmas)


@pytest.mark.parametrize("own", [None, CHOSEN])
def test_levels_that_pipelines_take_without_being_told_ask_for_nothing(own: tuple[float, ...] | None) -> None:
    check_levels(record(own), None)
    check_levels(record(own), np.linspace(1.0, 1 / 3, 3).tolist())


def test_the_plan_s_own_levels_pass_and_others_do_not() -> None:
    check_levels(record(CHOSEN), list(CHOSEN))
    with pytest.raises(UsageError, match=r"sigmas=1, 0.8, 0.3\n +expected: no sigmas"):
        check_levels(record(None), list(CHOSEN))
    with pytest.raises(UsageError, match=r"sigmas=1, 0.7, 0.3\n +expected: 1, 0.8, 0.3"):
        check_levels(record(CHOSEN), [1.0, 0.7, 0.3])


def test_another_shift_is_refused_where_there_is_one() -> None:
    dynamic = NoiseSchedule(prediction_type="flow", clip_sample=False, mu=0.8)
    check_mu(dynamic, 0.8)
    check_mu(dynamic, None)
    check_mu(NoiseSchedule(prediction_type="flow", clip_sample=False, shift=3.0), 0.8)
    with pytest.raises(UsageError, match=r"mu=1.15\n +expected: 0.8"):
        check_mu(dynamic, 1.15)
