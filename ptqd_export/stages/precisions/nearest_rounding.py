"""Quantizes the layers of one precision with rounding to nearest, the starting point of quantized graphs and of learned rounding."""

from __future__ import annotations

import difflib
import fnmatch
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calib.quantizers.group_choice import Span
from calib.quantizers.low_rank_branch import LowRankBranches
from calib.quantizers.observers import ObservedActivations
from calib.quantizers.quantize import ActivationQuantizers, QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import LayerOverrides
from calib.quantizers.rules.precision import Precision
from calib.quantizers.step_groups import StepGroup, together, with_activations
from engines.errors import UsageError
from ptqd_export.graph.reading.graph_layers import layers_beside_the_state
from ptqd_export.models.base import LoadedModel
from ptqd_export.plan import QuantizationSection
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_groups, load_observations


@dataclass(frozen=True, eq=False)
class Sources:
    """Inputs of quantized graphs.

    Attributes:
        prepared, states, seen: folders of the stages with the prepared network, the states and the observed activations.
        chosen: groups of steps that were chosen for the precision, as numbers of the observed ones; None keeps those.
        slower, noisy: layers that compute in float; see `calib.quantizers.rules.placement.LayerOverrides`.
        found: activation quantizers found from these observations so far, by group of steps, shared between precisions.
        reference: full-precision outputs that graphs are verified against by the steps of their group, computed on first use and shared
            between precisions.
    """

    prepared: Path
    states: Path
    seen: Path
    slower: Mapping[str, float] = field(default_factory=dict)
    noisy: Mapping[str, float] = field(default_factory=dict)
    chosen: tuple[Span, ...] | None = None
    found: dict[Span, ActivationQuantizers] = field(default_factory=lambda: defaultdict(dict))
    reference: dict[tuple[int, ...], NDArray[np.floating]] = field(default_factory=dict)

    def overrides(self, context: BuildContext) -> LayerOverrides:
        return context.overrides(self.slower, self.noisy)

    def groups(self) -> list[StepGroup]:
        """Return the groups of steps, the noisiest first."""
        observed = load_groups(self.seen)
        return observed if self.chosen is None else [together([observed[number] for number in span]) for span in self.chosen]

    def spans(self) -> list[Span]:
        """Return the groups of steps as numbers of the observed ones."""
        return [(number,) for number in range(len(load_groups(self.seen)))] if self.chosen is None else list(self.chosen)


@dataclass(frozen=True)
class Quantizers:
    """The quantizers of a network.

    Attributes:
        whole: quantizer with the observations of all steps.
        groups: quantizer of each group of steps, the noisiest first; `whole` itself if there is a single group.
    """

    whole: Quantizer
    groups: tuple[Quantizer, ...]

    def rounded_to_nearest(self, precision: Precision, on_layer: Callable[[], None] = lambda: None) -> list[QuantizedLayer]:
        """Return every layer that gets integers, rounded to nearest, with one activation scale for all steps. `on_layer` is called after
        each layer of the network.
        """
        return self.whole.quantize(precision, on_layer, self.groups)

    def by_group(self, precision: Precision, layers: Sequence[QuantizedLayer]) -> list[list[QuantizedLayer]]:
        """Return layers of `rounded_to_nearest` once per group, with the group's activation scales and the very same weights."""
        if self.groups == (self.whole,) or not precision.quantizes_activations:
            return [list(layers)]
        return [[with_activations(layer, quantizer) for layer in layers] for quantizer in self.groups]


def quantizers(context: BuildContext, sources: Sources, network: TracedNetwork, model: LoadedModel) -> Quantizers:
    """Return the quantizers of the prepared network.

    What a layer beside the state sees does not change along a chain, so all groups share its scales, and what it computes.

    Raises:
        UsageError: a pattern of the plan matches no layer, or nothing is left to quantize.
    """
    settings = context.plan.quantization
    check_patterns(settings, [layer.name for layer in network.layers])
    chosen = QuantizationSettings(settings.weight_scale, settings.activation_scale, sources.overrides(context))

    observed = [load_observations(sources.seen, number) for number in range(len(load_groups(sources.seen)))]
    everywhere = tuple(range(len(observed)))

    def seen(span: Span) -> dict[str, ObservedActivations]:
        return {name: ObservedActivations.together(observed[number][name] for number in span) for name in observed[0]}

    def quantizer(seen: Mapping[str, ObservedActivations], span: Span) -> Quantizer:
        return Quantizer(model.adapter.network, network.layers, seen, context.placement, chosen, sources.found[span], branches)

    in_all = seen(everywhere)
    branches = LowRankBranches(model.adapter.network, in_all)
    whole = quantizer(in_all, everywhere)
    if sources.spans() == [everywhere]:
        return Quantizers(whole, (whole,))
    beside = layers_beside_the_state(ir.load(sources.prepared / f"{FULL_PRECISION}.onnx").graph)
    shared = {name: one for name, one in in_all.items() if name.rpartition(".")[0] in beside}
    return Quantizers(whole, tuple(quantizer(seen(span) | shared, span) for span in sources.spans()))


def check_patterns(settings: QuantizationSection, names: Sequence[str]) -> None:
    """Check the plan's patterns, because a misspelt one would quantize a layer that the user wants to keep.

    Raises:
        UsageError: a pattern matches no layer, or nothing is left to quantize.
    """
    for name, patterns in (("keep_float", settings.keep_float), ("keep_8bit_weights", settings.keep_8bit_weights)):
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UsageError(
                    "A pattern of the plan matches no layer.",
                    found=f'"{pattern}" in quantization.{name}',
                    expected=f'a pattern that matches names such as "{names[0]}" or "{names[-1]}"',
                    mend=f'did you mean "{difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]}"?',
                )
    if {name for pattern in settings.keep_float for name in fnmatch.filter(names, pattern)} == set(names):
        raise UsageError("The plan keeps every layer in float.", found="quantization.keep_float", mend="build precision fp32 instead")
