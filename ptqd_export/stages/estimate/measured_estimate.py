"""Estimates how long a build will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ptqd_export.measuring.measured_with import named
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.build_estimate import BuildEstimate
from ptqd_export.stages.estimate.network_rows import network_rows
from ptqd_export.stages.estimate.planned_stages import without_size
from ptqd_export.stages.estimate.quicker_plans import quicker_plans
from ptqd_export.stages.estimate.rates import measure_rates
from ptqd_export.stages.estimate.stage_costs import StageCosts


def estimate_build(context: BuildContext, traced: Path, traced_in: float, stages: Sequence[str]) -> BuildEstimate:
    """Estimate the stages that follow, from the networks that they run and from rates that this call measures on this machine. Stages of
    a further size count as those of the first.

    Args:
        context: context of the build.
        traced: folder of the stage `trace`.
        traced_in: seconds that this stage took; 0 if it was reused.
        stages: names of the stages that follow, in order.
    """
    rates = measure_rates(context, traced)
    kinds = {stage: without_size(stage) for stage in stages}
    rows = [network_rows(context, kind) for kind in kinds.values()]

    def seconds(of: BuildContext) -> Callable[[str], float]:
        return StageCosts(of, traced, traced_in, rates).seconds

    return BuildEstimate(
        {stage: seconds(context)(kind) for stage, kind in kinds.items()},
        sum(one.graph + one.torch for one in rows),
        rates.graph_row,
        quicker_plans(context, list(kinds.values()), seconds),
        on_a_cluster=context.elsewhere is not None,
        idle_gpu=_idle_gpu(context),
        measured_on=named(context.measured_with.runtime),
    )


def _idle_gpu(context: BuildContext) -> bool:
    on_cpu = context.measured_with.runtime in ("onnxruntime", "onnxruntime-exact") and context.calibration_device.device == "cpu"
    return on_cpu and context.elsewhere is None and torch.cuda.is_available()
