"""Stage `statistics`: the on-policy walk, its moments and fits, and the schedule that follows."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from calib.observation import Elsewhere, Observer
from calib.policy import FixedPolicy, Policy, SnrPolicy
from calib.step_fit import CorrectionChoice
from calib.walk import WalkPlan
from engines.denoiser import Denoiser
from engines.schedule import SamplerRecord
from ptqd_export.build.context import FULL_PRECISION, BuildContext, graph_path
from ptqd_export.build.stages import Reporter
from ptqd_export.schedules.calibration_noise import calibration_rows
from ptqd_export.schedules.contract import schedule_of
from ptqd_export.schedules.walked import level_shift, take_walk
from ptqd_export.statistics_file import step_record
from ptqd_export.walk_work import observing

SCHEDULE = "schedule.json"


def make_statistics(context: BuildContext, graphs: Mapping[str, Path], choose: Policy, folder: Path, reporter: Reporter) -> None:
    """Writes `schedule.json` and, for every precision but full, `<precision>.json` with the records of all steps."""
    plan, table = context.plan, context.table
    with _walk_plan(context, graphs, choose) as walk_plan:
        results = take_walk(walk_plan, folder, lambda taken: reporter.advance(taken, table.steps))
    for precision in context.engine_precisions:
        records = [step_record(result, precision.name, plan.sampler.guidance) for result in results]
        (folder / f"{precision.name}.json").write_text(json.dumps(records, allow_nan=False))
    sampler = SamplerRecord(name=table.name, steps=plan.sampler.steps, eta=plan.sampler.eta, guidance=plan.sampler.guidance)
    schedule = schedule_of(sampler, _correction(context), plan.steps.policy, table, results)
    (folder / SCHEDULE).write_text(schedule.model_dump_json(indent=1) + "\n")


@contextlib.contextmanager
def _walk_plan(context: BuildContext, graphs: Mapping[str, Path], choose: Policy) -> Iterator[WalkPlan]:
    """What to walk, its networks opened here or, while the block runs, on a cluster."""
    plan = context.plan
    files = {name: graph_path(graphs, name) for name in graphs}
    if context.cluster is None:
        yield _on(context, {name: context.denoiser(file, plan.calibration.batch_size) for name, file in files.items()}, choose, None)
        return
    batches = math.ceil(plan.calibration.samples / plan.calibration.batch_size)
    with observing(context.cluster, context.walk_work, files, FULL_PRECISION, batches) as observer:
        yield _on(context, {name: Elsewhere(name) for name in files}, choose, observer)


def _on(context: BuildContext, networks: Mapping[str, Denoiser], choose: Policy, observer: Observer | None) -> WalkPlan:
    plan, noise, conditioning = context.plan, context.noise(), context.model.conditioning
    return WalkPlan(
        table=context.table,
        reference=networks[FULL_PRECISION],
        quantized=networks,
        noise=noise,
        rows=calibration_rows(noise, plan.calibration.samples, None if conditioning is None else conditioning.rows),
        policy=choose,
        correction=_correction(context),
        guidance=plan.sampler.guidance,
        trajectory=plan.calibration.trajectory,
        batch_size=plan.calibration.batch_size,
        shift=level_shift(plan.correction.variance, context.table, plan.calibration.trajectory, context.noise_schedule),
        observer=observer,
    )


def _correction(context: BuildContext) -> CorrectionChoice:
    chosen = context.plan.correction
    return CorrectionChoice(chosen.mode, chosen.variance, frozenset(chosen.parts))


def first_policy(context: BuildContext) -> Policy:
    """The policy of the first walk: the plan's, or, where a budget is spent afterwards, the paper's."""
    listed = context.plan.steps.precisions
    if listed is None:
        return SnrPolicy(tuple(precision.name for precision in context.precisions))
    return FixedPolicy(listed * context.table.steps if len(listed) == 1 else listed)
