"""Quantizes the layers of one precision with rounding to nearest, the starting point of quantized graphs and of learned rounding."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calib.quantizers.quantize import ActivationQuantizers, QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from engines.errors import UsageError
from ptqd_export.models.base import LoadedModel
from ptqd_export.plan import QuantizationSection
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_observations


@dataclass(frozen=True, eq=False)
class Sources:
    """Inputs of quantized graphs.

    Attributes:
        prepared, states, seen: folders of the stages with the prepared network, the states and the observed activations.
        slower: layers that keep integer weights but compute in float; see `calib.quantizers.rules.placement.LayerOverrides`.
        found: activation quantizers found from these observations so far, shared between precisions.
        reference: full-precision outputs that graphs are verified against, computed on first use and shared between precisions.
    """

    prepared: Path
    states: Path
    seen: Path
    slower: Mapping[str, float] = field(default_factory=dict)
    found: ActivationQuantizers = field(default_factory=dict)
    reference: list[NDArray[np.floating]] = field(default_factory=list)


def rounded_to_nearest(
    context: BuildContext,
    precision: Precision,
    sources: Sources,
    network: TracedNetwork,
    model: LoadedModel,
    on_layer: Callable[[], None] = lambda: None,
) -> list[QuantizedLayer]:
    """Return every layer that gets integers, with its scales, rounded to nearest. `on_layer` is called after each layer of the network.

    Raises:
        UsageError: a pattern of the plan matches no layer, or nothing is left to quantize.
    """
    settings = context.plan.quantization
    check_patterns(settings, [layer.name for layer in network.layers])
    chosen = QuantizationSettings(settings.weight_scale, settings.activation_scale, context.overrides(sources.slower))
    seen = load_observations(sources.seen)
    return Quantizer(model.adapter.network, network.layers, seen, context.placement, chosen, sources.found).quantize(precision, on_layer)


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
