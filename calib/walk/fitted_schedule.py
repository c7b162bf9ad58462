"""Builds the schedule from the results of every step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, get_args

from calib.correction.correction_fit import Part
from calib.correction.proposals import AnyMode
from calib.correction.step_fit import CorrectionChoice, StepCorrection, Variance
from calib.walk.step_result import StepResult
from engines.chain.features import precision_and_cut
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step, StepShift
from engines.samplers import SamplerTable, TableStep


def schedule_of(
    sampler: SamplerRecord,
    correction: CorrectionRecord,
    policy: str,
    table: SamplerTable,
    results: Sequence[StepResult],
    mixed: CorrectionChoice | None = None,
) -> Schedule:
    """Return the schedule of a chain.

    Args:
        sampler: the sampler that `table` was compiled from.
        correction: what was corrected.
        policy: name of the rule that chose the precisions.
        table: coefficients of the sampler.
        results: results of every step.
        mixed: proposal for the chain that the policy chose, if it is not the correction of each precision.
    """
    return Schedule(
        sampler=sampler,
        correction=correction,
        policy=policy,
        init_sigma=table.init_sigma,
        steps=tuple(_step(table.step(result.step), result, mixed) for result in results),
    )


def uncorrected_schedule(sampler: SamplerRecord, table: SamplerTable, precision: str) -> Schedule:
    """Return the schedule of a chain of one precision without corrections.

    Args:
        sampler: the sampler that `table` was compiled from.
        table: coefficients of the sampler.
        precision: precision of every step.
    """
    rows = [table.step(i) for i in range(table.steps)]
    return Schedule(
        sampler=sampler,
        correction=record_of("none", "none", ()),
        policy="fixed",
        init_sigma=table.init_sigma,
        steps=tuple(_taken(row, i, precision=precision, corrections={precision: _identity(row.sigma)}) for i, row in enumerate(rows)),
    )


def record_of(mode: AnyMode, variance: Variance, parts: Collection[Part]) -> CorrectionRecord:
    """Return the record of what was corrected."""
    return CorrectionRecord(mode=mode, parts=tuple(part for part in get_args(Part) if part in parts), variance=variance)


def _step(row: TableStep, result: StepResult, mixed: CorrectionChoice | None) -> Step:
    precision, cut = precision_and_cut(result.chosen)
    return _taken(
        row,
        result.step,
        precision=precision,
        corrections={name: _correction(fitted) for name, fitted in result.corrections.items()},
        shifted=None if result.shifted is None else _shift(result.shifted),
        mixed=None if mixed is None else _correction(result.proposals[mixed][result.chosen]),
        reuse=cut,
    )


def _taken(row: TableStep, index: int, **choice: Any) -> Step:
    return Step(
        step=index,
        timestep=row.timestep,
        x_coeff=row.x_coeff,
        out_coeff=row.out_coeff,
        prediction_coeffs=row.prediction_coeffs,
        history_coeffs=row.history_coeffs,
        input_scale=row.input_scale,
        sigma=row.sigma,
        clip=row.clip,
        **choice,
    )


def _shift(row: TableStep) -> StepShift:
    return StepShift(
        timestep=row.timestep,
        input_scale=row.input_scale,
        x_coeff=row.x_coeff,
        out_coeff=row.out_coeff,
        prediction_coeffs=row.prediction_coeffs,
    )


def _identity(sigma: float) -> Correction:
    return Correction(gain=(1.0,), offset=(0.0,), state_gain=(0.0,), sigma_corrected=sigma, residual_variance=0.0, unabsorbed_variance=0.0)


def _correction(fitted: StepCorrection) -> Correction:
    return Correction(
        gain=tuple(fitted.affine.gain.tolist()),
        offset=tuple(fitted.affine.offset.tolist()),
        state_gain=tuple(fitted.affine.state_gain.tolist()),
        sigma_corrected=fitted.sigma_corrected,
        residual_variance=fitted.residual_variance,
        unabsorbed_variance=fitted.unabsorbed_variance,
    )
