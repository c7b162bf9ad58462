"""What a request leaves out is as in the default schedule and the bundle's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calib.policy import FixedPolicy, SnrPolicy
from calib.step_fit import CorrectionChoice
from engines.bundle import Bundle
from engines.errors import BundleError, UsageError
from engines.schedule import SamplerRecord
from ptqd_export.schedules.settings import ScheduleRequest, ScheduleSettings, resolve

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def _resolve(tiny: TinyBundle, **request: Any) -> ScheduleSettings:
    return resolve(ScheduleRequest(**request), Bundle.open(tiny.folder))


def _change_default(tiny: TinyBundle, **fields: Any) -> None:
    """And the precisions of its steps."""
    precisions = fields.pop("precisions", None)

    def change(schedule: dict[str, Any]) -> None:
        schedule.update(fields)
        for step, precision in zip(schedule["steps"], precisions or [], strict=False):
            step["precision"] = precision

    tiny.edit_json("schedules/default.json", change)
    tiny.rehash("schedules/default.json")


def test_nothing_asked_for_is_the_default_schedule(finished_tiny: TinyBundle) -> None:
    settings = _resolve(finished_tiny)
    assert settings.sampler == SamplerRecord(name="ddim", steps=4, eta=1.0, guidance=1.5)
    assert (settings.table.steps, settings.correction, settings.policy) == (4, CorrectionChoice(), "snr")
    assert settings.choose == SnrPolicy(("w4a8", "w8a8"))
    calibration = settings.calibration
    assert (calibration.samples, calibration.batch_size, calibration.seed, settings.threads) == (24, 10, 5, 1)


def test_what_is_asked_for_takes_its_place(finished_tiny: TinyBundle) -> None:
    settings = _resolve(
        finished_tiny, steps=7, eta=0.0, guidance=3.0, mode="mmse", parts=("gain",), variance="none", samples=9, seed=0, trajectory="fp"
    )
    assert settings.sampler == SamplerRecord(name="ddim", steps=7, eta=0.0, guidance=3.0)
    assert settings.correction == CorrectionChoice("mmse", "none", frozenset({"gain"}))
    calibration = settings.calibration
    assert (calibration.samples, calibration.seed, calibration.trajectory, calibration.batch_size) == (9, 0, "fp", 10)


def test_another_sampler_has_an_eta_of_its_own(finished_tiny: TinyBundle, built_tiny: TinyBundle) -> None:
    assert _resolve(finished_tiny, sampler="ddpm").sampler.eta == 1.0
    _change_default(built_tiny, sampler={"name": "ddpm", "steps": 4, "eta": 1.0, "guidance": 1.5})
    assert _resolve(built_tiny).sampler.eta == 1.0
    assert _resolve(built_tiny, sampler="ddim").sampler.eta == 0.0
    assert _resolve(built_tiny, sampler="ddim", eta=0.5).sampler.eta == 0.5


def test_candidates_go_up_in_bit_operations(finished_tiny: TinyBundle) -> None:
    assert _resolve(finished_tiny, precisions=("fp32", "w8a8", "w4a8")).choose == SnrPolicy(("w4a8", "w8a8", "fp32"))


@pytest.mark.parametrize("precisions", [("w8a8",), ("w8a8",) * 4])
def test_one_precision_may_be_for_all_steps(finished_tiny: TinyBundle, precisions: tuple[str, ...]) -> None:
    assert _resolve(finished_tiny, policy="fixed", precisions=precisions).choose == FixedPolicy(("w8a8",) * 4)


def test_the_list_of_a_fixed_default_is_kept_where_it_fits(built_tiny: TinyBundle) -> None:
    listed = ("w4a8", "w4a8", "w8a8", "fp32")
    for policy in ("fixed", "budget"):
        _change_default(built_tiny, policy=policy, precisions=listed)
        settings = _resolve(built_tiny)
        assert (settings.policy, settings.choose) == (policy, FixedPolicy(listed))
        assert _resolve(built_tiny, precisions=("w4a8",)).policy == "fixed"
        with pytest.raises(UsageError, match="4 precisions"):
            _resolve(built_tiny, steps=3)
    _change_default(built_tiny, policy="fixed", precisions=["w4a8"] * 4)
    assert _resolve(built_tiny, steps=3).choose == FixedPolicy(("w4a8",) * 3)


def test_a_plan_of_another_version_is_told(built_tiny: TinyBundle) -> None:
    built_tiny.edit_json("plan.json", lambda plan: plan.update(surprise=1))
    built_tiny.rehash("plan.json")
    with pytest.raises(BundleError, match="another version"):
        _resolve(built_tiny)
