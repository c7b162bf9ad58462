"""`ptqd-export build`: from a plan to a bundle, stage by stage."""

from __future__ import annotations

from functools import partial

from engines.files import writable_folder
from ptqd_export.build.activations import make_observations, make_states
from ptqd_export.build.assemble import assemble
from ptqd_export.build.context import FULL_PRECISION, BuildContext
from ptqd_export.build.progress import Progress
from ptqd_export.build.quantization import make_quantized_graph
from ptqd_export.build.stages import StageCache
from ptqd_export.build.statistics import make_statistics
from ptqd_export.build.summary import print_summary
from ptqd_export.build.timing import time_engines
from ptqd_export.build.tracing import make_trace
from ptqd_export.plan import PlanFile


def run_build(plan_file: PlanFile, *, fresh: bool = False) -> None:
    """Build the bundle of a plan into its output folder, resuming what an earlier run finished.

    Args:
        plan_file: the plan.
        fresh: forget what an earlier run finished.

    Raises:
        UsageError: the plan does not fit the model, or the output cannot be written. Nothing is written then.
        PtqdError: a stage failed. Finished stages are kept.
    """
    context = BuildContext(plan_file)
    context.check()
    output = writable_folder(plan_file.output_path)
    plan = context.plan
    walked = {"sampler": plan.sampler.model_dump(), "null_class": plan.model.null_class}
    with Progress() as progress:
        cache = StageCache(output / "local" / "stages", progress, fresh=fresh)
        traced = cache.run("trace", {"model": context.fingerprint, "placement": context.placement.name}, partial(make_trace, context))
        drawn = {"traced": traced.name, **walked, **plan.calibration.model_dump(include={"activation_samples", "batch_size", "seed"})}
        states = cache.run("states", drawn, partial(make_states, context, traced))
        seen = cache.run("observe", {"states": states.name}, partial(make_observations, context, traced, states))
        graphs = {FULL_PRECISION: traced}
        for precision in context.quantized_precisions:
            settings = {"seen": seen.name, "quantization": plan.quantization.model_dump()}
            make = partial(make_quantized_graph, context, precision, traced, states, seen)
            graphs[precision.name] = cache.run(f"quantize-{precision.name}", settings, make)
        names = {name: folder.name for name, folder in graphs.items()}
        wanted = plan.model_dump(include={"sampler", "precisions", "calibration", "correction", "steps"})
        statistics = cache.run("statistics", {"graphs": names, **wanted}, partial(make_statistics, context, graphs))
        assemble(context, output, graphs, statistics)
        times = time_engines(context, output, graphs, progress)
    cache.prune()
    print_summary(context, output, graphs, times, cache.finished)
