"""`ptqd-export build`: builds a bundle from a plan, stage by stage."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from calib.quantizers.preparation.split_layer import part_name
from engines.apps.pictures.images import is_drawable
from engines.bundle.bundle import UNFINISHED_BUILD as STAGES
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import size_name
from engines.cluster.session import Cluster
from engines.errors import UsageError
from engines.host.interruption import keeping
from engines.host.machine import machine_name
from ptqd_export.models.text.prompts import calibration_prompts
from ptqd_export.plan import PlanFile
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.report.write_report import write_local_report
from ptqd_export.stages import stage_room as room
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.build_progress import ProgressTracker
from ptqd_export.stages.cluster_walk import walking_on
from ptqd_export.stages.estimate.measured_estimate import estimate_build
from ptqd_export.stages.estimate.planned_stages import planned_stages
from ptqd_export.stages.finish.assemble import Parts, assemble
from ptqd_export.stages.finish.keep_optimized import optimize_graphs
from ptqd_export.stages.finish.sample_pictures import make_pictures
from ptqd_export.stages.fit.budget import Chosen, choose_precisions, write_time_frontier
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.fit.statistics import make_statistics
from ptqd_export.stages.fit.timing import time_engines, write_times
from ptqd_export.stages.fit.walk_check import check_fitted, graph_digests
from ptqd_export.stages.network.controlling import make_control
from ptqd_export.stages.network.decoder_files import decoder_record
from ptqd_export.stages.network.text import make_text
from ptqd_export.stages.network.tracing import TracedNetwork, make_trace
from ptqd_export.stages.own_engines import target_engines
from ptqd_export.stages.precisions.cut_graphs import named_cuts
from ptqd_export.stages.precisions.nearest_rounding import check_patterns
from ptqd_export.stages.precisions.quantized_attention_sites import check_attention
from ptqd_export.stages.reporter import OnProgress, Reporter
from ptqd_export.stages.sizes.size_graphs import make_graphs
from ptqd_export.stages.sizes.size_network import SizeNetwork, make_network, source_of
from ptqd_export.stages.stage_cache import StageCache


def run_build(plan_file: PlanFile, *, fresh: bool = False, cluster: Cluster | None = None, on_progress: OnProgress | None = None) -> None:
    """Build the bundle of a plan in its output folder, reusing stages that an earlier run finished. Prints nothing.

    Args:
        plan_file: the plan.
        fresh: discard the stages that an earlier run finished.
        cluster: cluster that measures the statistics; None measures them in this process, with the same result.
        on_progress: called with the progress of every stage.

    Raises:
        UsageError: the plan does not fit the model, or the output cannot be written. Nothing is written.
        PtqdError: a stage failed, or another process is writing to the output folder. Finished stages are kept.
    """
    context = BuildContext(plan_file, None if cluster is None else partial(walking_on, cluster), target_engines)
    progress = ProgressTracker(on_progress)
    with _uncached("load", progress):
        check_build(context)
        progress.plan(planned_stages(context))
    output = plan_file.output_path
    kept = f"finished stages are kept in {output / STAGES}; the next build without --fresh continues from there"
    with writing_to(output), keeping(kept), _collecting_new_objects():
        _build(context, output, progress, fresh=fresh)


@contextlib.contextmanager
def _collecting_new_objects() -> Iterator[None]:
    """Have the garbage collector look at what the build makes, not at the objects of every library, which takes up to a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _build(context: BuildContext, output: Path, progress: ProgressTracker, *, fresh: bool) -> None:
    cache = StageCache(output / STAGES, progress, fresh=fresh)
    begin = time.monotonic()
    traced = _traced(context, cache)
    _check_patterns(context, traced)
    check_attention(context, traced)
    context = _with_named_cuts(context, traced)
    progress.estimate_with(partial(estimate_build, context, traced, time.monotonic() - begin))
    control = _control(context, cache)
    first = make_network(context, cache, traced)
    sizes = [first]
    for size, at_size in context.at_further_sizes.items():
        own = cache.at(size_name(size))
        sizes.append(make_network(at_size, own, _traced(at_size, own), first))
    graphs = make_graphs(sizes)
    fitted = [_fitted(network, made) for network, made in zip(sizes, graphs, strict=True)]
    pictures, text = _pictures(context, cache, graphs[0], first.decoder, fitted[0][0]), _text(context, cache)
    parts, *further = (
        Parts(
            graphs=made,
            prepared=network.prepared,
            decoder=network.decoder,
            encoder=network.encoder,
            preview=network.preview,
            control=control,
            text=text,
            walked=walked,
            chosen=chosen,
            pictures=pictures if network is first else None,
            versions={name: cache.libraries(folder) for name, folder in made.items()},
        )
        for network, made, (walked, chosen) in zip(sizes, graphs, fitted, strict=True)
    )
    with _uncached("bundle", progress):
        assemble(context, output, parts, [(network.context, own) for network, own in zip(sizes[1:], further, strict=True)])
    times = _times(context, graphs[0], parts.chosen, progress) if context.is_timed else None
    write_times(context, output, times)
    if parts.chosen is not None and parts.chosen.times is not None:
        write_time_frontier(context, output, parts.chosen, graphs[0], parts.chosen.times)
    with _uncached("optimize", progress):
        optimize_graphs(Bundle.open(output), progress.advance)
    write_local_report(output)
    cache.prune()


def _traced(context: BuildContext, cache: StageCache) -> Path:
    inputs = {**source_of(context), **context.model_settings}
    return cache.run("trace", inputs, partial(make_trace, context), room=room.traced(context))


def _fitted(network: SizeNetwork, graphs: Mapping[str, Path]) -> tuple[Path, Chosen | None]:
    """Return the folder of the default schedule's walk at a size, after checking it, and the chain that a budget bought, if any."""
    walked, chosen = _fitted_schedule(network.context, network.cache, graphs, network.decoder)
    checked = {"graphs": graph_digests(graphs), "walked": walked.name, "machine": machine_name()}
    network.cache.run("check", checked, partial(check_fitted, network.context, graphs, walked))
    return walked, chosen


def _check_patterns(context: BuildContext, traced: Path) -> None:
    """Check the plan's patterns of layer names before anything long. Preparation splits some layers into two parts."""
    quantization = context.plan.quantization
    names = [layer.name for layer in TracedNetwork.load(traced).layers]
    parts = [part_name(name, index) for name in names for index in (0, 1)] if quantization.split_concatenations else []
    if context.quantized_precisions:
        check_patterns(quantization, [*names, *parts])


def _with_named_cuts(context: BuildContext, traced: Path) -> BuildContext:
    """Return the context of a plan that names its cuts, after checking that the network has them.

    Raises:
        UsageError: the network has no such cut.
    """
    plan_file = context.plan_file
    if not plan_file.plan.reuse.cuts:
        return context
    found = named_cuts(traced, plan_file.plan.reuse.cuts)
    if not found and plan_file.plan.steps.reuse is not None:
        raise UsageError(
            "The network has no cut where reused features would save half of a step.",
            found='reuse.cuts "auto" with steps.reuse',
            expected="the name of a cut, or a plan without steps.reuse",
        )
    reuse = plan_file.plan.reuse.model_copy(update={"cuts": found})
    return context.changed(replace(plan_file, plan=plan_file.plan.model_copy(update={"reuse": reuse})))


@contextlib.contextmanager
def _uncached(stage: str, progress: Reporter) -> Iterator[None]:
    """Report a stage that every build runs again."""
    begin = time.monotonic()
    progress.start(stage)
    yield
    progress.finish(stage, time.monotonic() - begin, reused=False)


def _control(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with the control network's graph, or None if the plan names none."""
    if context.model.control_part is None:
        return None
    inputs = {**source_of(context), **context.model_settings}
    return cache.run("control", inputs, partial(make_control, context), room=room.control(context))


def _text(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with text encoders and tokenizers, or None if the plan has no prompts."""
    prompts = context.model.prompts
    if prompts is None or context.plan_file.prompts is None:
        return None
    texts = calibration_prompts(context.plan_file.prompts)
    in_float = context.plan.quantization.keep_float_encoders
    inputs = {"model": context.fingerprint, **context.model_settings, "fixed": dict(prompts.fixed), "in_float": in_float}
    return cache.run("text", inputs, partial(make_text, prompts, texts, in_float=in_float), room=room.text(context))


def _times(context: BuildContext, graphs: Mapping[str, Path], chosen: Chosen | None, progress: Reporter) -> Mapping[str, float]:
    """Return milliseconds per step by precision. If the build measured them to spend a budget, it reuses them."""
    if chosen is not None and chosen.times is not None:
        return chosen.times
    with _uncached("times", progress):
        return time_engines(context, graphs, progress)


def _fitted_schedule(
    context: BuildContext, cache: StageCache, graphs: Mapping[str, Path], decoder: Path | None
) -> tuple[Path, Chosen | None]:
    """Return the folder of the default schedule's walk, and the chain that a budget bought, if any, based on a first walk."""
    plan, names = context.plan, {name: folder.name for name, folder in graphs.items()}
    wanted = {
        "graphs": names,
        "measured": asdict(context.measured_with),
        **plan.model_dump(include={"sampler", "precisions", "calibration", "correction", *(("reuse",) if plan.reuse.cuts else ())}),
    }
    settings = fit_settings(context)
    judged = {"decoder": decoder.name} if decoder is not None and settings.proposals else {}
    spends = plan.steps.policy == "budget"
    steps = "snr" if spends else plan.steps.model_dump()
    needed = room.walked(context, graphs)
    make = partial(make_statistics, context, graphs, decoder, settings.undecided if spends else settings)
    first = cache.run("statistics", {**wanted, "steps": steps, **({} if spends else judged)}, make, room=needed)
    if not spends:
        return first, None
    chosen = choose_precisions(context, cache, graphs, first)
    make = partial(make_statistics, context, graphs, decoder, settings.spent(chosen.networks))
    return cache.run("schedule", {**wanted, "chosen": chosen.networks, **judged}, make, room=needed), chosen


def _pictures(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path], decoder: Path | None, walked: Path) -> Path | None:
    """Return the folder with the report's pictures, or None if samples are not pictures."""
    record = decoder_record(decoder)
    if not is_drawable(context.model.sample_shape if record is None else record.image_shape):
        return None
    inputs = {"graphs": {name: folder.name for name, folder in graphs.items()}, "walked": walked.name}
    decoded = {} if decoder is None else {"decoder": decoder.name}
    return cache.run("pictures", {**inputs, **decoded}, partial(make_pictures, context, graphs, decoder, walked))
