"""What a request leaves out is as in the default schedule and the bundle's plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.policy import FixedPolicy, SnrPolicy
from engines.bundle.bundle import Bundle
from engines.chain.schedule import SamplerRecord
from engines.errors import BundleError, UsageError
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
    fit = settings.fit
    assert fit.sampler == SamplerRecord(name="ddim", steps=4, eta=1.0, guidance=1.5)
    assert (fit.table.steps, fit.correction, fit.policy) == (4, CorrectionChoice(), "snr")
    assert fit.choose == SnrPolicy(("w4a8", "w8a8"))
    assert (fit.samples, fit.batch_size, settings.threads) == (CalibrationSamples.draw(5, (1, 8, 8), 3, 24), 10, 1)


def test_what_is_asked_for_takes_its_place(finished_tiny: TinyBundle) -> None:
    fit = _resolve(
        finished_tiny, steps=7, eta=0.0, guidance=3.0, mode="mmse", parts=("gain",), variance="none", samples=9, seed=0, trajectory="fp"
    ).fit
    assert fit.sampler == SamplerRecord(name="ddim", steps=7, eta=0.0, guidance=3.0)
    assert fit.correction == CorrectionChoice("mmse", "none", frozenset({"gain"}))
    assert (fit.samples, fit.trajectory, fit.batch_size) == (CalibrationSamples.draw(0, (1, 8, 8), 3, 9), "fp", 10)


def test_chosen_levels_stay_with_their_sampler_and_number_of_steps(built_tiny: TinyBundle) -> None:
    sampler = {"name": "ddpm", "steps": 4, "eta": 1.0, "guidance": 1.5, "timesteps": [900.0, 600.0, 300.0, 0.0]}
    _change_default(built_tiny, sampler=sampler)
    kept = _resolve(built_tiny, guidance=2.0).fit
    assert kept.sampler.timesteps == (900.0, 600.0, 300.0, 0.0)
    assert kept.table.timestep.tolist() == [900, 600, 300, 0]
    assert _resolve(built_tiny, steps=3).fit.sampler.timesteps is None
    assert _resolve(built_tiny, sampler="ddim").fit.sampler.timesteps is None


def test_another_sampler_has_an_eta_of_its_own(finished_tiny: TinyBundle, built_tiny: TinyBundle) -> None:
    assert _resolve(finished_tiny, sampler="ddpm").fit.sampler.eta == 1.0
    _change_default(built_tiny, sampler={"name": "ddpm", "steps": 4, "eta": 1.0, "guidance": 1.5})
    assert _resolve(built_tiny).fit.sampler.eta == 1.0
    assert _resolve(built_tiny, sampler="ddim").fit.sampler.eta == 0.0
    assert _resolve(built_tiny, sampler="ddim", eta=0.5).fit.sampler.eta == 0.5


def test_candidates_go_up_in_bit_operations(finished_tiny: TinyBundle) -> None:
    assert _resolve(finished_tiny, precisions=("fp32", "w8a8", "w4a8")).fit.choose == SnrPolicy(("w4a8", "w8a8", "fp32"))


@pytest.mark.parametrize("precisions", [("w8a8",), ("w8a8",) * 4])
def test_one_precision_may_be_for_all_steps(finished_tiny: TinyBundle, precisions: tuple[str, ...]) -> None:
    assert _resolve(finished_tiny, policy="fixed", precisions=precisions).fit.choose == FixedPolicy(("w8a8",) * 4)


def test_the_list_of_a_fixed_default_is_kept_where_it_fits(built_tiny: TinyBundle) -> None:
    listed = ("w4a8", "w4a8", "w8a8", "fp32")
    for policy in ("fixed", "budget"):
        _change_default(built_tiny, policy=policy, precisions=listed)
        settings = _resolve(built_tiny)
        assert (settings.fit.policy, settings.fit.choose) == (policy, FixedPolicy(listed))
        assert _resolve(built_tiny, precisions=("w4a8",)).fit.policy == "fixed"
        with pytest.raises(UsageError, match="4 precisions"):
            _resolve(built_tiny, steps=3)
    _change_default(built_tiny, policy="fixed", precisions=["w4a8"] * 4)
    assert _resolve(built_tiny, steps=3).fit.choose == FixedPolicy(("w4a8",) * 3)


def test_a_plan_of_another_version_is_told(built_tiny: TinyBundle) -> None:
    built_tiny.edit_json("plan.json", lambda plan: plan.update(surprise=1))
    built_tiny.rehash("plan.json")
    with pytest.raises(BundleError, match="another version"):
        _resolve(built_tiny)
