"""The graphs of a build at every size: what a precision is, is decided at the first size on what all sizes observe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from calib.quantizers.group_choice import Span
from calib.quantizers.quantize import ActivationQuantizers
from calib.quantizers.rules.precision import Precision
from engines.host.machine import machine_name
from ptqd_export.stages import stage_room as room
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.precisions.activations import gather_observations, make_observations
from ptqd_export.stages.precisions.chosen_groups import load_chosen, make_group_choice
from ptqd_export.stages.precisions.conversion import make_converted_graph
from ptqd_export.stages.precisions.cut_graphs import make_cut_graphs
from ptqd_export.stages.precisions.integer_speed import load_slower, make_integer_speed
from ptqd_export.stages.precisions.learned_rounding import make_learned_rounding
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.noisy_layers import load_noisy, make_layer_noise
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from ptqd_export.stages.sizes.size_network import SizeNetwork, device_of
from ptqd_export.stages.stage_cache import StageCache

Reference: TypeAlias = dict[tuple[int, ...], NDArray[np.floating]]


@dataclass(frozen=True)
class _Decided:
    """What the integers of a precision follow from.

    Attributes:
        sources: sources of its graphs, with the layers and groups that were chosen.
        settings: inputs of the stage that makes its graphs.
        learned: folder of the learned rounding, or None.
    """

    sources: Sources
    settings: Mapping[str, Any]
    learned: Path | None

    def at(self, network: SizeNetwork, seen: Path, reference: Reference) -> _Decided:
        """Return the same at a further size. All sizes share the scales that are found.

        Args:
            network: the networks at the size.
            seen: folder with the observations.
            reference: outputs that the size's precisions are verified against; see `Sources`.
        """
        sources = replace(self.sources, prepared=network.prepared, states=network.states, seen=seen, reference=reference)
        settings = {**self.settings, "prepared": network.prepared.name, "seen": seen.name, "states": network.states.name}
        return _Decided(sources, settings, self.learned)


def make_graphs(networks: Sequence[SizeNetwork]) -> list[dict[str, Path]]:
    """Return the folders of the graphs at every size, by precision. Graphs of one precision have the same integers and scales.

    Args:
        networks: the networks at every size.
    """
    first, seen = networks[0], _gathered(networks, [_observed(network) for network in networks])
    slower = _slower_in_integers(first, seen[0])
    found: Mapping[Path, dict[Span, ActivationQuantizers]] = {folder: defaultdict(dict) for folder in seen[0].values()}
    shared = {folder: Sources(first.prepared, first.states, folder, slower, found=own) for folder, own in found.items()}
    decided = {one.name: _decided(first, one, shared[seen[0][one.name]]) for one in first.context.quantized_precisions}
    made = [_graphs(first, decided)]
    for network, own in zip(networks[1:], seen[1:], strict=True):
        reference: Reference = {}
        made.append(_graphs(network, {name: one.at(network, own[name], reference) for name, one in decided.items()}))
    return made


def _graphs(network: SizeNetwork, decided: Mapping[str, _Decided]) -> dict[str, Path]:
    """Return the folders of the graphs at a size."""
    quantized = {one.name: _quantized(network, one, decided[one.name]) for one in network.context.quantized_precisions}
    graphs = {FULL_PRECISION: network.traced, **quantized, **_converted(network)}
    return _cut(
        network.context, network.cache, graphs, {name: network.prepared if name in quantized else network.traced for name in graphs}
    )


def _observed(network: SizeNetwork) -> dict[str, Path]:
    """Return the folders with observed activations, by precision: one stage for all precisions, or one each at the steps that use it."""
    context, prepared, states = network.context, network.prepared, network.states
    inputs: dict[str, Any] = {"prepared": prepared.name, "states": states.name, **device_of(context)}
    inputs |= {"attention": True} if context.plan.quantization.attention != "float" else {}

    def observed(name: str, steps: Sequence[int]) -> Path:
        groups = context.groups(steps)
        make = partial(make_observations, context, prepared, states, groups)
        grouped = {**inputs, "groups": [asdict(group) for group in groups]}
        return network.cache.run(name, grouped, make, room=len(groups) * room.observed(prepared))

    precisions = context.quantized_precisions
    if context.observes_all:
        return dict.fromkeys((precision.name for precision in precisions), observed("observe", range(context.table.steps)))
    return {precision.name: observed(f"observe-{precision.name}", context.steps_of(precision)) for precision in precisions}


def _gathered(networks: Sequence[SizeNetwork], seen: Sequence[Mapping[str, Path]]) -> Sequence[Mapping[str, Path]]:
    """Return the folders with the observations of all sizes, by precision, for every size; groups of steps are a size's own."""
    if len(networks) == 1:
        return seen

    def gathered(network: SizeNetwork, own: Mapping[str, Path], name: str) -> Path:
        sizes = [one[name] for one in seen]
        inputs = {"own": own[name].name, "sizes": [folder.name for folder in sizes]}
        stage = "observe" if network.context.observes_all else f"observe-{name}"
        make, groups = partial(gather_observations, own[name], sizes), len(network.context.groups(range(network.context.table.steps)))
        return network.cache.run(f"gather-{stage}", inputs, make, room=groups * room.observed(network.prepared))

    return [{name: gathered(network, own, name) for name in own} for network, own in zip(networks, seen, strict=True)]


def _slower_in_integers(network: SizeNetwork, seen: Mapping[str, Path]) -> Mapping[str, float]:
    """Return the layers that are slower in integers; empty if the plan does not ask for them, or has no quantized precisions."""
    context, prepared = network.context, network.prepared
    if context.plan.quantization.integer_layers == "all" or not seen:
        return {}
    any_seen = next(iter(seen.values()))
    timed = context.plan.target.model_dump(include={"threads", "benchmark_batch", "provider"})
    inputs = {"prepared": prepared.name, "guided": context.guided, "keep_float": context.plan.quantization.keep_float, **timed}
    inputs["machine"] = machine_name()
    make = partial(make_integer_speed, context, prepared, any_seen)
    return load_slower(network.cache.run("integer-speed", inputs, make, room=room.quantized(context, prepared)))


def _decided(network: SizeNetwork, precision: Precision, sources: Sources) -> _Decided:
    """Decide what the integers of a precision follow from, at the first size."""
    context, cache, prepared = network.context, network.cache, network.prepared
    quantization = context.plan.quantization
    settings: dict[str, Any] = {"prepared": prepared.name, "seen": sources.seen.name, "quantization": quantization.model_dump()}
    settings |= {"slower": sources.slower} if sources.slower else {}
    if quantization.float_share > 0:
        measure = partial(make_layer_noise, context, precision, sources)
        inputs = {**settings, "states": sources.states.name, **device_of(context)}
        noise = cache.run(f"noise-{precision.name}", inputs, measure)
        sources, settings["noise"] = replace(sources, noisy=load_noisy(noise)), noise.name
    if context.chooses_groups and precision.quantizes_activations:
        choose = partial(make_group_choice, context, precision, sources)
        chosen = cache.run(f"groups-{precision.name}", {**settings, "states": sources.states.name}, choose)
        sources, settings["chosen"] = replace(sources, chosen=load_chosen(chosen)), chosen.name
    learned = None
    if quantization.learns(precision):
        learn = partial(make_learned_rounding, context, precision, sources)
        inputs = {**settings, "states": sources.states.name, **device_of(context)}
        learned = cache.run(f"reconstruct-{precision.name}", inputs, learn, room=room.learned(prepared), resumable=True)
        settings["learned"] = learned.name
    return _Decided(sources, settings, learned)


def _quantized(network: SizeNetwork, precision: Precision, decided: _Decided) -> Path:
    """Return the folder with the graph of a quantized precision."""
    context = network.context
    make = partial(make_quantized_graph, context, precision, decided.sources, decided.learned)
    settings = {**decided.settings, **context.plan.target.model_dump(include={"provider", "high_precision"})}
    settings |= context.plan.calibration.model_dump(include={"device", "verify_states"})
    return network.cache.run(f"quantize-{precision.name}", settings, make, room=room.quantized(context, network.prepared))


def _converted(network: SizeNetwork) -> dict[str, Path]:
    """Return the folders of the precisions that convert full precision to another float type."""
    context, traced, states = network.context, network.traced, network.states
    inputs = {"traced": traced.name, "states": states.name, "provider": context.plan.target.provider}
    inputs |= context.plan.calibration.model_dump(include={"device", "verify_states"})
    converted = {}
    for precision in context.engine_precisions:
        if precision.weight_bits is None:
            make = partial(make_converted_graph, context, precision, traced, states)
            name, needed = precision.name, room.converted(context, precision)
            converted[name] = network.cache.run(f"convert-{name}", inputs, make, room=needed)
    return converted


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
