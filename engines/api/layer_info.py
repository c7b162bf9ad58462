"""What quantization made of every layer with weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from engines.bundle.bundle import Bundle
from engines.bundle.contract import first_problem
from engines.errors import BundleError


@dataclass(frozen=True)
class ActivationScale:
    """The quantizer of a layer's input or output: the value is `scale * (integer - zero_point)`."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class WeightScales:
    """The scales of a layer's weight: the number of output channels, the smallest scale and the largest.

    `group` is the number of input channels that share a scale; None for one scale for each output channel.
    """

    channels: int
    smallest: float
    largest: float
    group: int | None = None


@dataclass(frozen=True)
class LayerBits:
    """One layer at one precision.

    Attributes:
        weight_bits: bits of the weight; None for float.
        activation_bits: bits of the input; None for float.
        reason: why the bits are not those of the precision; None if they are.
        weight: scales of the weight; None for float.
        input: quantizer of the input; None for float.
        output: quantizer of the output; None for float.
        bit_operations: multiply-accumulates per sample times both bit widths; None in a bundle that does not record them.
        low_rank: rank of the branch in float beside the quantized product; None for no branch.
        learned: what was learned of the weight: `adapters`, `rounding`, both or nothing.
        rotation: size of the blocks of the input that are rotated; None if it is not.
    """

    weight_bits: int | None
    activation_bits: int | None
    reason: str | None
    weight: WeightScales | None
    input: ActivationScale | None
    output: ActivationScale | None
    bit_operations: int | None
    low_rank: int | None = None
    learned: tuple[str, ...] = ()
    rotation: int | None = None

    @property
    def techniques(self) -> tuple[str, ...]:
        """What helps the layer beside its bits, in words."""
        sizes = {"rank": self.low_rank, "rotation": self.rotation}
        return (*(f"{what} {size}" for what, size in sizes.items() if size is not None), *self.learned)


@dataclass(frozen=True)
class LayerInfo:
    """One layer with weights.

    Attributes:
        name: name of the layer in the model.
        op: operator of the graph, such as `Conv`.
        role: `inner`, `boundary` for the first and last layers, `embedding`, or `condition` for layers that read a prompt.
        precisions: the layer at every precision except full precision.
    """

    name: str
    op: str
    role: str
    precisions: Mapping[str, LayerBits]


class StoredLayer(BaseModel):
    """A layer's record in a statistics file."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: str
    op: str
    role: str
    weight_bits: PositiveInt | None
    activation_bits: PositiveInt | None
    reason: str | None
    weight: WeightScales | None = None
    input: ActivationScale | None = None
    output: ActivationScale | None = None
    bit_operations: PositiveInt | None = None
    low_rank: PositiveInt | None = None
    learned: tuple[str, ...] = ()
    rotation: PositiveInt | None = None

    def bits(self) -> LayerBits:
        scales, helped = (self.weight, self.input, self.output), (self.low_rank, self.learned, self.rotation)
        return LayerBits(self.weight_bits, self.activation_bits, self.reason, *scales, self.bit_operations, *helped)


class _StoredLayers(BaseModel):
    """The part of a statistics file that is read here."""

    layers: tuple[StoredLayer, ...]


def layers_of(bundle: Bundle) -> tuple[LayerInfo, ...]:
    """Return every layer with weights, in the network's order; empty if the bundle has no statistics.

    Raises:
        BundleError: a statistics file is damaged.
    """
    files = {name: f"{bundle.statistics_folder}/{name}.json" for name in bundle.manifest.precisions}
    stored = {name: _stored(bundle, file) for name, file in files.items() if file in bundle.manifest.files}
    if len({tuple(layers) for layers in stored.values()}) > 1:
        raise BundleError("Statistics of different precisions list different layers.", mend="rebuild the bundle")
    first = next(iter(stored.values()), {})
    return tuple(
        LayerInfo(name, layer.op, layer.role, {precision: layers[name].bits() for precision, layers in stored.items()})
        for name, layer in first.items()
    )


def _stored(bundle: Bundle, file: str) -> dict[str, StoredLayer]:
    try:
        found = _StoredLayers.model_validate_json(json.dumps(bundle.json(file)))
    except ValidationError as error:
        raise BundleError(
            "The statistics are damaged.", found=f"{bundle.folder / file}: {first_problem(error)}", mend="build the bundle again"
        ) from error
    return {layer.name: layer for layer in found.layers}
