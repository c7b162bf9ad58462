"""The constants of a bundle's graphs with LoRAs in their weights. The bundle itself is not changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.errors import BundleError, UsageError
from engines.networks.lora.layer_forms import LayerForms
from engines.networks.lora.lora_changes import FloatWeights, LoraChanges
from engines.networks.lora.lora_use import LoraUse
from engines.networks.lora.prepared_weights import PreparedWeights
from engines.networks.lora.requantized import bias_integers, least_scales, packed, requantized
from engines.untrusted.stored_tensors import StoredConstant, StoredTensors

HALF = ".half"
"""End of the names of constants in half precision."""

FLOAT_BITS = 16
"""Least bits of the weights of precisions that are not quantized: their networks were not prepared."""

Constants = dict[str, NDArray[Any]]
"""Constants by name; packed integers as bytes."""


@dataclass
class ChangedWeights:
    """The constants of a bundle's graphs with LoRAs, computed when a precision is first asked for.

    Attributes:
        bundle: the bundle.
        weights: its weights in full precision.
        changes: the LoRAs.
        prepared: what the build did to the weights of quantized precisions.
    """

    bundle: Bundle
    weights: FloatWeights
    changes: LoraChanges
    prepared: PreparedWeights
    _found: dict[str, Constants] = field(default_factory=dict)

    @classmethod
    def of(cls, bundle: Bundle, uses: Sequence[LoraUse]) -> ChangedWeights:
        """Read the LoRAs and match them with the bundle. Raises the errors of `LoraChanges.of`."""
        weights = FloatWeights.of(bundle)
        return cls(bundle, weights, LoraChanges.of(weights, uses), PreparedWeights.of(bundle))

    def release(self) -> None:
        """Drop the computed constants: runtimes hold copies of their own. They are computed again for further engines."""
        self._found.clear()

    def constants(self, precision: str, graph: Path) -> Constants:
        """Return the constants that one of a precision's graphs takes in place of its own.

        Args:
            precision: name of the precision.
            graph: any verified graph of that precision: of a group of steps, whole, a piece, or at a cut.

        Raises:
            UsageError: the precision stores a layer in a form that cannot be computed again.
        """
        if precision not in self._found:
            self._found[precision] = _PrecisionWeights(self, precision).constants()
        shared, tensors = self._found[precision], StoredTensors(graph)
        return {name: value for name, value in shared.items() if name in tensors} | dict(_biases(tensors, shared))


class _PrecisionWeights:
    """Computes the weights of one precision."""

    def __init__(self, changed: ChangedWeights, precision: str) -> None:
        record = changed.bundle.precision(precision)
        self._changed = changed
        self._precision = precision
        self._prepares = record.weight_bits < FLOAT_BITS
        self._forms = LayerForms.of(changed.bundle, precision)
        graphs = [changed.bundle.graph(network.graph, record.weights_of) for network in record.networks]
        self._tensors, *self._groups = [StoredTensors(graph) for graph in graphs]

    def constants(self) -> Constants:
        found: Constants = {}
        for layer, shape in ((name, self._changed.weights.shapes[name]) for name in self._changed.changes.layers):
            weight, change = self._changed.weights[layer], self._changed.changes.change(layer, shape)
            for (part, own), (_, added) in zip(self._parts(layer, weight), self._parts(layer, change), strict=True):
                found |= self._part(part, own, added)
        return found

    def _parts(self, layer: str, weight: Float32) -> Iterator[tuple[str, Float32]]:
        return self._changed.prepared.parts(layer, weight) if self._prepares else iter([(layer, weight)])

    def _part(self, layer: str, weight: Float32, change: Float32) -> Constants:
        for name in (f"{layer}.weight", f"{layer}.weight.T"):
            stored = _named(self._tensors, name)
            if stored is not None:
                changed = weight + change
                return {stored[0]: self._typed(stored[1], changed.T if name.endswith(".T") else changed, layer)}
        stored, form = _named(self._tensors, f"{layer}.weight.int"), self._forms[layer]
        if stored is None or form is None or form.weight_bits is None or form.form != "integer":
            raise self._refused(layer, "floats with scales" if form is None else form.form)
        return dict(self._integers(layer, weight, change, form.weight_bits, transposed=form.op == "MatMul", stored=stored[1]))

    def _integers(
        self, layer: str, weight: Float32, change: Float32, bits: int, *, transposed: bool, stored: StoredConstant
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        found = _named(self._tensors, f"{layer}.weight.scale")
        if found is None:
            raise self._refused(layer, "no scales of its own")
        name, tensor = found
        scales = self._values(tensor, layer)
        of_channels = scales.T if transposed and scales.ndim == 2 else scales
        part = weight - self._branch(layer)
        new = requantized(part, of_channels.reshape(len(weight), -1), bits, part + change, self._floor(layer, of_channels))
        integers = np.ascontiguousarray(new.integers.T if transposed else new.integers)
        yield f"{layer}.weight.int", packed(integers) if stored.is_packed else integers
        of_shape = new.scale.T if transposed and scales.ndim == 2 else new.scale
        yield name, self._typed(tensor, of_shape.reshape(scales.shape), layer)

    def _branch(self, layer: str) -> Float32:
        """Return what a low-rank branch beside the integers adds to them; the LoRA goes into the integers."""
        factors = [_named(self._tensors, f"{layer}.low_rank.{end}") for end in ("down", "up")]
        if None in factors:
            return np.zeros((), dtype=np.float32)
        down, up = (self._values(one[1], layer) for one in factors if one is not None)
        return np.asarray((down @ up).T, dtype=np.float32)

    def _floor(self, layer: str, scales: Float32) -> Float32 | None:
        biases = [bias for bias in (_StoredBias.of(tensors, layer, scales) for tensors in (self._tensors, *self._groups)) if bias]
        return least_scales(biases[0].bias, min(bias.input_scale for bias in biases)) if biases else None

    def _values(self, tensor: StoredConstant, layer: str) -> Float32:
        try:
            return tensor.values().astype(np.float32)
        except ValueError as error:
            raise self._refused(layer, str(error)) from error

    def _typed(self, tensor: StoredConstant, value: Float32, layer: str) -> NDArray[Any]:
        """Return a value in the type of the graph's own."""
        if tensor.shape != value.shape:
            raise self._refused(layer, f"a weight {list(tensor.shape)}")
        try:
            with np.errstate(over="ignore"):
                found = np.ascontiguousarray(value.astype(tensor.numpy_type))
        except ValueError as error:
            raise self._refused(layer, str(error)) from error
        if not np.isfinite(found).all():
            raise UsageError(
                "With the LoRA, weights exceed the range of their type.",
                found=f"{layer} of {self._precision} in {found.dtype}, up to {np.abs(value).max():.3g}",
                expected=f"values up to {np.finfo(found.dtype).max:g}",
                mend="use a smaller scale",
            )
        return found

    def _refused(self, layer: str, form: str) -> UsageError:
        return UsageError(
            f"The precision {self._precision} cannot take a LoRA.",
            found=f"{layer} is stored as {form}",
            expected="weights in float32, float16 or integers",
            mend="use another precision, or build a bundle with model.lora in the plan",
        )


@dataclass(frozen=True, eq=False)
class _StoredBias:
    """The int32 bias of an integer kernel.

    Attributes:
        bias: its values, float64 [out].
        input_scale: scale of the kernel's input.
    """

    bias: NDArray[np.float64]
    input_scale: float

    @classmethod
    def of(cls, tensors: StoredTensors, layer: str, weight_scale: Float32) -> _StoredBias | None:
        """Return the bias of a layer in a graph; None if it has none in integers. Its scale is the input's times that of the weight."""
        integers, scale = (tensors.get(f"{layer}.bias.{end}") for end in ("int", "scale"))
        if integers is None or scale is None:
            return None
        scales = scale.values()
        bias = integers.values().astype(np.float64) * scales.astype(np.float64)
        known = (np.float32(tensors[name].values()) for name in tensors if name.startswith("scale."))
        of_input = next((float(one) for one in known if np.array_equal(one * weight_scale.reshape(-1), scales)), None)
        if of_input is None:
            raise BundleError(
                "A graph of the bundle is not one that a build wrote.",
                found=f"a bias of {layer} whose scales are not those of input and weight",
                expected="their product",
                mend="build the bundle again",
            )
        return cls(bias, of_input)


def _biases(tensors: StoredTensors, changed: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the biases of a graph whose weights have new scales."""
    for name, scale in changed.items():
        layer, is_scale, _ = name.partition(".weight.scale")
        old = tensors.get(name)
        bias = None if not is_scale or old is None else _StoredBias.of(tensors, layer, old.values())
        if bias is not None:
            new = np.asarray(np.float32(bias.input_scale) * scale.reshape(-1), dtype=np.float32)
            yield f"{layer}.bias.int", bias_integers(bias.bias, new)
            yield f"{layer}.bias.scale", new


def _named(tensors: StoredTensors, name: str) -> tuple[str, StoredConstant] | None:
    """Return the name and the value of a constant, which a graph in half precision names otherwise."""
    return next(((one, tensors[one]) for one in (name, f"{name}{HALF}") if one in tensors), None)
