"""Stage `statistics`: the on-policy walk, its moments and fits, and the schedule that follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from calib.policy import FixedPolicy, Policy, SnrPolicy
from calib.step_fit import CorrectionChoice
from calib.walk import StepResult, Walk, WalkPlan
from engines.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from ptqd_export.build.context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.build.stages import Reporter
from ptqd_export.statistics_file import step_record

SCHEDULE = "schedule.json"


def make_statistics(context: BuildContext, graphs: Mapping[str, Path], folder: Path, reporter: Reporter) -> None:
    """Writes `schedule.json` and, for every quantized precision, `<precision>.json` with the records of all steps."""
    table = context.table
    results: list[StepResult] = []
    with Walk(_walk_plan(context, graphs), folder) as walk:
        for result in walk:
            results.append(result)
            reporter.advance(len(results), table.steps)
    for precision in context.quantized_precisions:
        records = [step_record(result, precision.name, context.plan.sampler.guidance) for result in results]
        (folder / f"{precision.name}.json").write_text(json.dumps(records, allow_nan=False))
    (folder / SCHEDULE).write_text(_schedule(context, results).model_dump_json(indent=1) + "\n")


def _walk_plan(context: BuildContext, graphs: Mapping[str, Path]) -> WalkPlan:
    plan, noise = context.plan, context.noise()
    samples = np.arange(plan.calibration.samples, dtype=np.int64)
    conditioning = context.model.conditioning
    networks = {name: context.denoiser(graph_path(graphs, name), plan.calibration.batch_size) for name in graphs}
    return WalkPlan(
        table=context.table,
        reference=networks[FULL_PRECISION],
        quantized=networks,
        noise=noise,
        rows=np.zeros_like(samples) if conditioning is None else noise.row(samples, conditioning.rows),
        policy=_policy(context),
        correction=CorrectionChoice(plan.correction.mode, plan.correction.variance),
        guidance=plan.sampler.guidance,
        trajectory=plan.calibration.trajectory,
        batch_size=plan.calibration.batch_size,
    )


def _policy(context: BuildContext) -> Policy:
    listed = context.plan.steps.precisions
    if listed is None:
        return SnrPolicy(tuple(precision.name for precision in context.precisions))
    return FixedPolicy(listed * context.table.steps if len(listed) == 1 else listed)


def _schedule(context: BuildContext, results: list[StepResult]) -> Schedule:
    plan, table = context.plan, context.table
    sampler = SamplerRecord(name=table.name, steps=table.steps, eta=plan.sampler.eta, guidance=plan.sampler.guidance)
    return Schedule(
        sampler=sampler,
        correction=CorrectionRecord(mode=plan.correction.mode, variance=plan.correction.variance),
        policy=plan.steps.policy,
        init_sigma=table.init_sigma,
        steps=tuple(_step(context, result) for result in results),
    )


def _step(context: BuildContext, result: StepResult) -> Step:
    row = context.table.step(result.step)
    return Step(
        step=result.step,
        timestep=row.timestep,
        precision=result.chosen,
        x_coeff=row.x_coeff,
        out_coeff=row.out_coeff,
        prediction_coeffs=row.prediction_coeffs,
        history_coeffs=row.history_coeffs,
        input_scale=row.input_scale,
        sigma=row.sigma,
        clip=row.clip,
        corrections={
            name: Correction(
                gain=tuple(fitted.affine.gain.tolist()),
                offset=tuple(fitted.affine.offset.tolist()),
                sigma_corrected=fitted.sigma_corrected,
                residual_variance=fitted.residual_variance,
                unabsorbed_variance=fitted.unabsorbed_variance,
            )
            for name, fitted in result.corrections.items()
        },
    )
