"""A schedule from a new walk with the bundle's own engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calib.shift import LevelShift, check_shift
from calib.states import store_bytes
from calib.step_result import StepResult
from calib.walk import Walk, WalkPlan
from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.room import check_room
from engines.samplers import NoiseSchedule, SamplerTable
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.calibration_noise import calibration_noise, calibration_rows
from ptqd_export.schedules.settings import ScheduleSettings
from ptqd_export.stand_in import measuring_backend


def walk(bundle: Bundle, settings: ScheduleSettings, on_step: Callable[[int], None]) -> list[StepResult]:
    """Walks full precision and the precisions that the policy may choose.

    Raises:
        UsageError: the model cannot be guided, or the steps of the sampler cannot be shifted.
        NoRoomError: the disk has too little room for the states.
    """
    plan, folder = walk_plan(bundle, settings), bundle.folder / "local"
    check_room(folder, len(plan.rows) * store_bytes(plan.noise.shape, len(plan.quantized), plan.table.history), "the states of the walk")
    return take_walk(plan, folder, on_step)


def take_walk(plan: WalkPlan, folder: Path, on_step: Callable[[int], None]) -> list[StepResult]:
    """The results of all steps.

    Args:
        plan: what to walk.
        folder: the states lie in a new folder under it meanwhile.
        on_step: called after every step, with how many were taken.
    """
    results = []
    with Walk(plan, folder) as steps:
        for result in steps:
            results.append(result)
            on_step(len(results))
    return results


def level_shift(variance: str, table: SamplerTable, trajectory: str, noise_schedule: NoiseSchedule) -> LevelShift | None:
    """What takes steps from noisier levels, where the correction asks for it.

    Raises:
        UsageError: the steps cannot be shifted.
    """
    if variance != "shift":
        return None
    check_shift(table, trajectory)
    return LevelShift.of(noise_schedule)


def walk_plan(bundle: Bundle, settings: ScheduleSettings) -> WalkPlan:
    """What to walk, on the bundle's own engines."""
    model, calibration, guidance = bundle.manifest.model, settings.calibration, settings.sampler.guidance
    noise = calibration_noise(calibration.seed, model.sample_shape)
    shift = level_shift(settings.correction.variance, settings.table, calibration.trajectory, model.noise_schedule)
    bank = EngineBank(bundle, guidance, batch=calibration.batch_size, backend=measuring_backend(bundle, settings.threads))
    return WalkPlan(
        table=settings.table,
        reference=bank[FULL_PRECISION],
        quantized={name: bank[name] for name in dict.fromkeys((FULL_PRECISION, *settings.precisions))},
        noise=noise,
        rows=calibration_rows(noise, calibration.samples, None if model.conditioning is None else model.conditioning.rows),
        policy=settings.choose,
        correction=settings.correction,
        guidance=guidance,
        trajectory=calibration.trajectory,
        batch_size=calibration.batch_size,
        shift=shift,
    )
