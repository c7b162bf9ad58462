"""How many rows each stage of a build takes through the network. A sample is one row, or two under guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from calib.quantizers.group_choice import spans
from calib.quantizers.rules.precision import Precision
from calib.quantizers.step_groups import groups_of
from calib.walk.end_choice import end_evaluations, round_size
from calib.walk.fit import PROBED_SAMPLES, probe_evaluations
from calib.walk.reuse_errors import reuse_evaluations
from engines.apps.compare.engine_check import checked_evaluations
from ptqd_export.graph.checks.verify import LED_STATES, VERIFIED_STATES, verified_states
from ptqd_export.report.pictures import KINDS, MOST
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.fit import budget, timing
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.precisions import noisy_layers


@dataclass(frozen=True)
class NetworkRows:
    """Rows through graphs on the build's runtime, and through PyTorch."""

    graph: int = 0
    torch: int = 0


def network_rows(context: BuildContext, stage: str) -> NetworkRows:
    """Return the rows of a stage; none for learned rounding and the measurement of integer speed, whose runs depend on the layers."""
    kind = stage.partition("-")[0]
    branches = 2 if context.guided else 1
    if kind in ("prepare", "observe"):
        return NetworkRows(torch=branches * _states(context))
    if kind == "noise":
        return NetworkRows(torch=branches * noisy_layers.RUNS)
    if kind == "groups":
        parts = len(context.groups(range(context.table.steps)))
        return NetworkRows(torch=(parts + sum(map(len, spans(parts)))) * (VERIFIED_STATES // parts))
    if kind == "quantize":
        precision = Precision.parse(stage.partition("-")[2])
        groups = len(groups_of(precision, context.groups(range(context.table.steps))))
        verified = _verified(context, groups)
        return NetworkRows(graph=groups * 2 * verified, torch=groups * (2 * verified + min(LED_STATES, verified)))
    if kind == "convert":
        return NetworkRows(graph=_verified(context), torch=2 * _verified(context))
    return NetworkRows(graph=branches * _samples(context, kind))


def _samples(context: BuildContext, kind: str) -> int:
    """Return how many samples a stage takes through graphs."""
    steps, calibration, networks = context.table.steps, context.plan.calibration, 1 + len(context.engine_precisions)
    match kind:
        case "states":
            return steps * max(math.ceil(context.activation_samples / steps), calibration.batch_size)
        case "statistics" | "schedule":
            settings = fit_settings(context)
            walked = steps * (calibration.samples * networks + settings.paired)
            return walked + end_evaluations(settings, networks) * round_size(settings)
        case "probes":
            return PROBED_SAMPLES * probe_evaluations(networks, steps)
        case "aging":
            return PROBED_SAMPLES * reuse_evaluations(len(context.precisions), steps)
        case "choice":
            return budget.CHECKED_SAMPLES * steps * (1 + budget.most_measured(len(context.precisions)))
        case "check":
            return checked_evaluations(calibration.samples, steps, networks)
        case "pictures":
            return len(KINDS) * steps * min(MOST, calibration.samples)
        case "times":
            timed = networks + len(context.cut_networks)
            return timed * (timing.WARM_UP + timing.ROUNDS) * context.plan.target.benchmark_batch
    return 0


def _states(context: BuildContext) -> int:
    """Return how many states there are for the activation ranges."""
    steps, wanted = context.table.steps, context.activation_samples
    return steps * math.ceil(wanted / steps)


def _verified(context: BuildContext, groups: int = 1) -> int:
    """Return how many states the graph of a group of steps is verified at."""
    return min(verified_states(groups, context.plan.calibration.verify_states), _states(context) // groups)
