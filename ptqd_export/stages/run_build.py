"""`ptqd-export build`: builds a bundle from a plan, stage by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from calib.quantizers.preparation.split_layer import part_name
from calib.quantizers.rules.precision import Precision
from engines.apps.pictures.images import is_drawable
from engines.bundle.bundle import UNFINISHED_BUILD as STAGES
from engines.bundle.bundle import Bundle
from engines.cluster.session import Cluster
from engines.host.interruption import keeping
from engines.host.machine import machine_name
from ptqd_export.models.text.prompts import calibration_prompts
from ptqd_export.plan import PlanFile
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.report.write_report import write_local_report
from ptqd_export.stages import stage_room as room
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
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
from ptqd_export.stages.network.decoding import decoder_record, make_decoder
from ptqd_export.stages.network.encoding import make_encoder
from ptqd_export.stages.network.preparation import make_preparation
from ptqd_export.stages.network.states import make_states
from ptqd_export.stages.network.text import make_text
from ptqd_export.stages.network.tracing import TracedNetwork, make_trace
from ptqd_export.stages.own_engines import target_engines
from ptqd_export.stages.precisions.activations import make_observations
from ptqd_export.stages.precisions.chosen_groups import load_chosen, make_group_choice
from ptqd_export.stages.precisions.conversion import make_converted_graph
from ptqd_export.stages.precisions.cut_graphs import make_cut_graphs, named_cuts
from ptqd_export.stages.precisions.integer_speed import load_slower, make_integer_speed
from ptqd_export.stages.precisions.learned_rounding import make_learned_rounding
from ptqd_export.stages.precisions.nearest_rounding import Sources, check_patterns
from ptqd_export.stages.precisions.noisy_layers import load_noisy, make_layer_noise
from ptqd_export.stages.precisions.quantized_attention_sites import check_attention
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from ptqd_export.stages.reporter import OnProgress, Reporter
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
    with writing_to(output), keeping(kept):
        _build(context, output, progress, fresh=fresh)


def _build(context: BuildContext, output: Path, progress: ProgressTracker, *, fresh: bool) -> None:
    plan = context.plan
    sampled = {"sampler": plan.sampler.model_dump(), "null_class": plan.model.null_class}
    cache = StageCache(output / STAGES, progress, fresh=fresh)
    begin = time.monotonic()
    traced = cache.run("trace", {**_source(context), **context.model_settings}, partial(make_trace, context), room=room.traced(context))
    _check_patterns(context, traced)
    check_attention(context, traced)
    context = _with_named_cuts(context, traced)
    plan = context.plan
    progress.estimate_with(partial(estimate_build, context, traced, time.monotonic() - begin))
    decoder = _decoder(context, cache)
    encoder = _encoder(context, cache, decoder)
    control = _control(context, cache)
    drawn = {"traced": traced.name, "measured": asdict(context.measured_with), **sampled}
    drawn |= plan.calibration.model_dump(include={"activation_samples", "batch_size", "seed"})
    states = cache.run("states", drawn, partial(make_states, context, traced), room=room.states(context))
    prepared = _prepared(context, cache, traced, states)
    seen = _observed(context, cache, prepared, states)
    slower = _slower_in_integers(context, cache, prepared, seen)
    sources = {folder: Sources(prepared, states, folder, slower) for folder in seen.values()}
    quantized = {
        precision.name: _quantized(context, cache, precision, sources[seen[precision.name]]) for precision in context.quantized_precisions
    }
    graphs = {FULL_PRECISION: traced, **quantized, **_converted(context, cache, traced, states)}
    graphs = _cut(context, cache, graphs, {name: prepared if name in quantized else traced for name in graphs})
    walked, chosen = _fitted_schedule(context, cache, graphs)
    checked = {"graphs": graph_digests(graphs), "walked": walked.name, "machine": machine_name()}
    cache.run("check", checked, partial(check_fitted, context, graphs, walked))
    pictures = _pictures(context, cache, graphs, decoder, walked)
    versions = {name: cache.libraries(folder) for name, folder in graphs.items()}
    parts = Parts(graphs, prepared, decoder, encoder, control, _text(context, cache), walked, chosen, pictures, versions)
    with _uncached("bundle", progress):
        assemble(context, output, parts)
    times = _times(context, graphs, chosen, progress) if context.is_timed else None
    write_times(context, output, times)
    if chosen is not None and chosen.times is not None:
        write_time_frontier(context, output, chosen, chosen.times)
    with _uncached("optimize", progress):
        optimize_graphs(Bundle.open(output), progress.advance)
    write_local_report(output)
    cache.prune()


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
    reuse = plan_file.plan.reuse.model_copy(update={"cuts": named_cuts(traced, plan_file.plan.reuse.cuts)})
    return context.changed(replace(plan_file, plan=plan_file.plan.model_copy(update={"reuse": reuse})))


def _cut(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path], networks: Mapping[str, Path]) -> dict[str, Path]:
    """Return the folders of the graphs, of which those with cuts replace those without.

    Args:
        context: context of the build.
        cache: cache of the stages.
        graphs: folders of the graphs, by precision.
        networks: folders of the full-precision graphs with the same layers, by precision.
    """
    cuts = context.plan.reuse.cuts
    if not cuts:
        return dict(graphs)
    made = dict[str, Path]()
    for name, folder in graphs.items():
        inputs = {"graph": folder.name, "network": networks[name].name, "cuts": list(cuts)}
        make = partial(make_cut_graphs, name, folder, networks[name], tuple(cuts))
        made[name] = cache.run(f"cut-{name}", inputs, make, room=sum(file.stat().st_size for file in folder.glob("*.onnx*")))
    return made


@contextlib.contextmanager
def _uncached(stage: str, progress: Reporter) -> Iterator[None]:
    """Report a stage that every build runs again."""
    begin = time.monotonic()
    progress.start(stage)
    yield
    progress.finish(stage, time.monotonic() - begin, reused=False)


def _source(context: BuildContext) -> dict[str, str]:
    """Inputs of the stages that make full-precision graphs."""
    return {"model": context.fingerprint, "placement": context.placement.name}


def _decoder(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with the decoder's graph, or None if the states are images."""
    if context.model.decoder is None:
        return None
    return cache.run("decoder", _source(context), partial(make_decoder, context), room=room.decoder(context))


def _encoder(context: BuildContext, cache: StageCache, decoder: Path | None) -> Path | None:
    """Return the folder with the encoder's graph, or None if the plan asks for none."""
    record = decoder_record(decoder)
    if context.model.encoder is None or record is None or decoder is None:
        return None
    make = partial(make_encoder, context, record.image_shape)
    return cache.run("encoder", {**_source(context), "decoder": decoder.name}, make, room=room.encoder(context))


def _control(context: BuildContext, cache: StageCache) -> Path | None:
    """Return the folder with the control network's graph, or None if the plan names none."""
    if context.model.control_part is None:
        return None
    inputs = {**_source(context), **context.model_settings}
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


def _prepared(context: BuildContext, cache: StageCache, traced: Path, states: Path) -> Path:
    """Return the folder with the network to quantize: that of the traced network if the plan asks for no preparation."""
    wanted = context.plan.quantization.model_dump(include={"split_concatenations", "channel_scaling", "rotation", "keep_float"})
    if not context.prepares:
        return traced
    inputs = {"states": states.name, **wanted, **_device(context)}
    return cache.run("prepare", inputs, partial(make_preparation, context, traced, states), room=room.traced(context))


def _observed(context: BuildContext, cache: StageCache, prepared: Path, states: Path) -> dict[str, Path]:
    """Return the folders with observed activations, by precision: one stage for all precisions, or one each at the steps that use it."""
    inputs: dict[str, Any] = {"prepared": prepared.name, "states": states.name, **_device(context)}
    inputs |= {"attention": True} if context.plan.quantization.attention != "float" else {}

    def observed(name: str, steps: Sequence[int]) -> Path:
        groups = context.groups(steps)
        make = partial(make_observations, context, prepared, states, groups)
        return cache.run(name, {**inputs, "groups": [asdict(group) for group in groups]}, make, room=len(groups) * room.observed(prepared))

    precisions = context.quantized_precisions
    if context.plan.quantization.activation_steps == "all":
        return dict.fromkeys((precision.name for precision in precisions), observed("observe", range(context.table.steps)))
    return {precision.name: observed(f"observe-{precision.name}", context.steps_of(precision)) for precision in precisions}


def _slower_in_integers(context: BuildContext, cache: StageCache, prepared: Path, seen: Mapping[str, Path]) -> Mapping[str, float]:
    """Return the layers that are slower in integers; empty if the plan does not ask for them, or has no quantized precisions."""
    if context.plan.quantization.integer_layers == "all" or not seen:
        return {}
    any_seen = next(iter(seen.values()))
    timed = context.plan.target.model_dump(include={"threads", "benchmark_batch", "provider"})
    inputs = {"prepared": prepared.name, "guided": context.guided, "keep_float": context.plan.quantization.keep_float, **timed}
    inputs["machine"] = machine_name()
    make = partial(make_integer_speed, context, prepared, any_seen)
    return load_slower(cache.run("integer-speed", inputs, make, room=room.quantized(context, prepared)))


def _quantized(context: BuildContext, cache: StageCache, precision: Precision, sources: Sources) -> Path:
    """Return the folder with the graph of a quantized precision."""
    prepared, quantization = sources.prepared, context.plan.quantization
    settings: dict[str, Any] = {"prepared": prepared.name, "seen": sources.seen.name, "quantization": quantization.model_dump()}
    settings |= {"slower": sources.slower} if sources.slower else {}
    if quantization.float_share > 0:
        measure = partial(make_layer_noise, context, precision, sources)
        inputs = {**settings, "states": sources.states.name, **_device(context)}
        noise = cache.run(f"noise-{precision.name}", inputs, measure)
        sources, settings["noise"] = replace(sources, noisy=load_noisy(noise)), noise.name
    if context.chooses_groups and precision.quantizes_activations:
        choose = partial(make_group_choice, context, precision, sources)
        chosen = cache.run(f"groups-{precision.name}", {**settings, "states": sources.states.name}, choose)
        sources, settings["chosen"] = replace(sources, chosen=load_chosen(chosen)), chosen.name
    learned = None
    if quantization.rounding != "nearest" and precision.form == "integer":
        learn = partial(make_learned_rounding, context, precision, sources)
        inputs = {**settings, "states": sources.states.name, **_device(context)}
        learned = cache.run(f"reconstruct-{precision.name}", inputs, learn, room=room.learned(prepared), resumable=True)
        settings["learned"] = learned.name
    make = partial(make_quantized_graph, context, precision, sources, learned)
    settings |= context.plan.target.model_dump(include={"provider", "high_precision"})
    settings |= context.plan.calibration.model_dump(include={"device", "verify_states"})
    return cache.run(f"quantize-{precision.name}", settings, make, room=room.quantized(context, prepared))


def _converted(context: BuildContext, cache: StageCache, traced: Path, states: Path) -> dict[str, Path]:
    """Return the folders of the precisions that convert full precision to another float type."""
    inputs = {"traced": traced.name, "states": states.name, "provider": context.plan.target.provider}
    inputs |= context.plan.calibration.model_dump(include={"device", "verify_states"})
    converted = {}
    for precision in context.engine_precisions:
        if precision.weight_bits is None:
            make = partial(make_converted_graph, context, precision, traced, states)
            converted[precision.name] = cache.run(f"convert-{precision.name}", inputs, make, room=room.converted(context, precision))
    return converted


def _times(context: BuildContext, graphs: Mapping[str, Path], chosen: Chosen | None, progress: Reporter) -> Mapping[str, float]:
    """Return milliseconds per step by precision. If the build measured them to spend a budget, it reuses them."""
    if chosen is not None and chosen.times is not None:
        return chosen.times
    with _uncached("times", progress):
        return time_engines(context, graphs, progress)


def _fitted_schedule(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path]) -> tuple[Path, Chosen | None]:
    """Return the folder of the default schedule's walk, and the chain that a budget bought, if any, based on a first walk."""
    plan, names = context.plan, {name: folder.name for name, folder in graphs.items()}
    wanted = {
        "graphs": names,
        "measured": asdict(context.measured_with),
        **plan.model_dump(include={"sampler", "precisions", "calibration", "correction", *(("reuse",) if plan.reuse.cuts else ())}),
    }
    spends = plan.steps.policy == "budget"
    steps = "snr" if spends else plan.steps.model_dump()
    needed = room.walked(context, graphs)
    settings = fit_settings(context)
    make = partial(make_statistics, context, graphs, settings.undecided if spends else settings)
    first = cache.run("statistics", {**wanted, "steps": steps}, make, room=needed)
    if not spends:
        return first, None
    chosen = choose_precisions(context, cache, graphs, first)
    make = partial(make_statistics, context, graphs, settings.spent(chosen.precisions))
    return cache.run("schedule", {**wanted, "chosen": chosen.precisions}, make, room=needed), chosen


def _pictures(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path], decoder: Path | None, walked: Path) -> Path | None:
    """Return the folder with the report's pictures, or None if samples are not pictures."""
    record = decoder_record(decoder)
    if not is_drawable(context.model.sample_shape if record is None else record.image_shape):
        return None
    inputs = {"graphs": {name: folder.name for name, folder in graphs.items()}, "walked": walked.name}
    decoded = {} if decoder is None else {"decoder": decoder.name}
    return cache.run("pictures", {**inputs, **decoded}, partial(make_pictures, context, graphs, decoder, walked))


def _device(context: BuildContext) -> dict[str, str]:
    return context.plan.calibration.model_dump(include={"device", "dtype"})
