"""The size and cost of a bundle's precisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.bundle.bundle import Bundle


@dataclass(frozen=True)
class PrecisionInfo:
    """One precision.

    Attributes:
        name: name of the precision, such as `w4a8`.
        weight_bits: bits of the quantized layers' weights; 32 for `fp32`.
        activation_bits: bits of the quantized layers' activations; 32 for `fp32`.
        bytes: size of the graphs with their weights.
        bit_operations_saved: how many times fewer bit operations than float32, over the layers with integer weights and activations.
        bit_operations_saved_all: the same over the whole network.
        graph: file of the graph, relative to the bundle; with groups of steps, that of the noisiest group.
        cuts: bit operations saved over the whole network at steps that reuse features, by cut.
        groups: timesteps that divide the groups of steps, falling; each group has activation scales of its own. Empty for a single group.
    """

    name: str
    weight_bits: int
    activation_bits: int
    bytes: int
    bit_operations_saved: float
    bit_operations_saved_all: float
    graph: str
    groups: tuple[float, ...] = ()
    cuts: Mapping[str, float] = field(default_factory=dict)


def precisions_of(bundle: Bundle) -> dict[str, PrecisionInfo]:
    """Return every precision by name, in the manifest's order."""
    return {name: _info(bundle, name) for name in bundle.manifest.precisions}


def _info(bundle: Bundle, name: str) -> PrecisionInfo:
    record = bundle.manifest.precisions[name]
    return PrecisionInfo(
        name=name,
        weight_bits=record.weight_bits,
        activation_bits=record.activation_bits,
        bytes=bundle.manifest.bytes_of([name]),
        bit_operations_saved=record.bit_operations_saved,
        bit_operations_saved_all=record.bit_operations_saved_all,
        graph=record.graph,
        groups=tuple(group.below for group in record.groups),
        cuts={name: cut.bit_operations_saved_all for name, cut in record.cuts.items()},
    )
