"""Where quantizers go, one table row per runtime. Differences between targets are data here, never a branch in a pass."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from calib.quantizers.rules.layers import Layer, Op, Role
from calib.quantizers.rules.precision import BLOCK_FORMATS, Form, Precision, stored_bits

INT4_BITS = 4
"""Weights of at most this many bits can be packed, two in a byte."""

CONTAINER_BITS = 8
"""Activations are stored in 8-bit integers whatever their bit width: no runtime computes with fewer bits today."""

HighPrecision = Literal["fp32", "fp16", "bf16"]
"""Type of everything that is not quantized."""

HIGH_PRECISION_BITS: Mapping[HighPrecision, int] = MappingProxyType({"fp32": 32, "fp16": 16, "bf16": 16})


@dataclass(frozen=True)
class OpPlacement:
    """Q/DQ around one operator.

    Attributes:
        quantize_output: put Q/DQ after the operator too (only then does ONNX Runtime make a convolution an integer kernel).
        bias: type of the stored bias.
        int4: when weights of at most 4 bits are stored packed, two per byte (ONNX INT4): with any activations, with float activations
            only, or never. Otherwise they are stored as INT8.
        shifted: whether the integers and zero points of the weights can be shifted together when the graph is loaded. ONNX Runtime has two
            kernels for integer convolutions and uses the one for zero points of 0 if all are 0, although the other is twice as fast on
            processors with AMX.
        blocks: whether packed weights can have one scale for each block of input channels.
    """

    quantize_output: bool
    bias: Literal["int32", "float"]
    int4: Literal["always", "weight_only", "never"]
    shifted: bool = False
    blocks: bool = False


@dataclass(frozen=True)
class Placement:
    """What a runtime expects of a graph.

    Attributes:
        name: name of the placement, and of the folder with its graphs.
        signed: activations are int8, otherwise uint8.
        symmetric: zero points must be 0.
        ops: which operators are quantized, and how.
        int4_form: how packed weights are unpacked: `cast` to INT8 before DequantizeLinear, which ONNX Runtime folds when it loads the
            graph; or by DequantizeLinear itself in `blocks` of input channels, the only form that TensorRT has kernels for.
        weight_only: how the integer weights of float layers are scaled. `multiply` is a Cast and a Mul, which ONNX Runtime folds when it
            loads the graph; with DequantizeLinear the weight would stay unpacked, and a batch of one would use a kernel that rounds
            differently. TensorRT accepts integers only with `dequantize`.
        group_norm: `instance` writes group norms as instance norm and batch norm, because ONNX Runtime's CPU provider has kernels for
            these but none for the operator. TensorRT has the operator.
        attention: `operator` writes attention as ONNX's operator of opset 23; `products` leaves it as traced.
        condition: activations of layers of the role `condition`. The first token of a prompt can be a hundred times as large as the others,
            which a range that holds it rounds to almost nothing (MixDQ, arXiv 2405.17873).
        high_precisions: types available for the float part of a graph; the first is the default.
        forms: forms available for storing quantized values.
    """

    name: str
    signed: bool
    symmetric: bool
    ops: Mapping[Op, OpPlacement]
    int4_form: Literal["cast", "blocks"]
    weight_only: Literal["dequantize", "multiply"]
    group_norm: Literal["instance", "operator"]
    attention: Literal["operator", "products"]
    condition: Literal["float", "quantized"]
    high_precisions: tuple[HighPrecision, ...]
    forms: tuple[Form, ...]


PLACEMENTS: Mapping[str, Placement] = MappingProxyType(
    {
        "onnxruntime": Placement(
            name="onnxruntime",
            signed=False,
            symmetric=False,
            int4_form="cast",
            weight_only="multiply",
            group_norm="instance",
            attention="operator",
            condition="float",
            high_precisions=("fp32",),
            forms=("integer",),
            ops=MappingProxyType(
                {
                    "Conv": OpPlacement(quantize_output=True, bias="int32", int4="always", shifted=True),
                    "Gemm": OpPlacement(quantize_output=True, bias="int32", int4="always", blocks=True),
                    "MatMul": OpPlacement(quantize_output=False, bias="float", int4="always", blocks=True),
                }
            ),
        ),
        "tensorrt": Placement(
            name="tensorrt",
            signed=True,
            symmetric=True,
            int4_form="blocks",
            weight_only="dequantize",
            group_norm="operator",
            attention="products",
            condition="float",
            high_precisions=("fp16", "bf16", "fp32"),
            forms=("integer", "e4m3", "nvfp4", "mxfp8"),
            ops=MappingProxyType(
                {
                    "Conv": OpPlacement(quantize_output=False, bias="float", int4="never"),
                    "Gemm": OpPlacement(quantize_output=False, bias="float", int4="weight_only", blocks=True),
                    "MatMul": OpPlacement(quantize_output=False, bias="float", int4="weight_only", blocks=True),
                }
            ),
        ),
    }
)


@dataclass(frozen=True)
class Rule:
    """What one layer gets at one precision.

    Attributes:
        weight_bits, activation_bits, output_bits: bit widths; None means float.
        bias: how the bias is stored.
        reason: why the bit widths differ from the precision's.
        form: form of the quantized weight.
        activation_form: form of the quantized activations.
        group: number of input channels that share a scale of the weight; None for one scale for each output channel.
        low_rank: rank of the branch in float beside the quantized product; None for no branch.
        branches: rank of the branches of layers that read the same input, which the input's range is chosen for; None for no branches.
    """

    weight_bits: int | None
    activation_bits: int | None
    output_bits: int | None
    bias: Literal["int32", "float"]
    reason: str | None = None
    form: Form = "integer"
    activation_form: Form = "integer"
    group: int | None = None
    low_rank: int | None = None
    branches: int | None = None

    def stored_weight_bits(self, scale_bits: int) -> float | None:
        """Bits that a weight takes with its share of a group's or block's scale; None for float. Scales of channels do not count."""
        if self.weight_bits is None:
            return None
        return stored_bits(self.weight_bits, self.form) + (0 if self.group is None else scale_bits / self.group)

    @property
    def stored_activation_bits(self) -> float | None:
        """Bits that an activation takes with its share of the scale of a block; None for float."""
        return None if self.activation_bits is None else stored_bits(self.activation_bits, self.activation_form)


_FLOAT_ACTIVATIONS: Mapping[Role, str] = MappingProxyType(
    {
        "boundary": "first or last layer: 8-bit weights, float activations "
        "(8 bits on the state itself or on the output would bound the SNR)",
        "embedding": "embedding branch, independent of the state: 8-bit weights, float activations",
    }
)

_FLOAT_CONDITION = "prompt or other condition, independent of the state: float activations (one token can be far larger than the others)"


@dataclass(frozen=True)
class LayerOverrides:
    """What the plan says about layers beyond the precision.

    Attributes:
        keep_float: patterns (as in `fnmatch`) of layer names that stay in float.
        keep_8bit_weights: patterns of layer names whose weights never have fewer than 8 bits.
        slower: layers that keep integer weights but compute in float, with the measured speed-up of integers over float.
        noisy: layers that have 8-bit weights and compute in float because of the noise they cause alone, in dB relative to the output.
        weight_group: number of input channels that share a scale in packed weights of float activations; None for scales of channels.
        low_rank: rank of the branch in float beside quantized products of fewer than 8 bits; None for no branches.
    """

    keep_float: tuple[str, ...] = ()
    keep_8bit_weights: tuple[str, ...] = ()
    slower: Mapping[str, float] = field(default_factory=dict)
    noisy: Mapping[str, float] = field(default_factory=dict)
    weight_group: int | None = None
    low_rank: int | None = None


NO_OVERRIDES = LayerOverrides()

WITHOUT_GROUPS = "one weight scale for each output channel"
"""Begins the reason why a weight has no scales of groups where the plan asks for them."""

WITHOUT_BLOCKS = "8-bit floats (E4M3) without blocks"
"""Begins the reason why a layer has no blocks at a precision of floats in blocks."""

WITHOUT_BRANCH = "no low-rank branch"
"""Begins the reason why a layer has no low-rank branch where the plan asks for one."""

_EIGHT_BIT_FLOATS = Rule(8, 8, None, "float", form="e4m3", activation_form="e4m3")


NOISY = "among the noisiest layers"
"""Begins the reason why a layer computes in float for the noise that it causes."""


def rule(layer: Layer, precision: Precision, placement: Placement, overrides: LayerOverrides = NO_OVERRIDES) -> Rule:
    """Return the rule for a layer.

    Args:
        layer: the layer.
        precision: the plan's precision; float precisions keep every layer in float.
        placement: the target's table.
        overrides: exceptions from the precision.
    """
    bits = _bits(layer, precision, placement, overrides)
    packed = bits.weight_bits is not None and bits.weight_bits <= INT4_BITS and bits.activation_bits is None and bits.form == "integer"
    if packed and overrides.weight_group is not None:
        return _grouped(bits, layer, placement, overrides.weight_group)
    return bits if overrides.low_rank is None or not _is_narrow(precision) else _branched(bits, layer, overrides.low_rank)


def _is_narrow(precision: Precision) -> bool:
    """Whether a precision has fewer than 8 bits somewhere. The noise of 8 bits is too low to pay for branches."""
    return min(precision.weight_bits or CONTAINER_BITS, precision.activation_bits or CONTAINER_BITS) < CONTAINER_BITS


def _branched(bits: Rule, layer: Layer, rank: int) -> Rule:
    """Return the rule with a low-rank branch, or, where a layer with quantized activations takes none, with the reason."""
    if bits.activation_bits is None:
        return bits
    lacking = lacking_branch(layer, rank)
    if lacking is not None:
        return replace(bits, reason=_and(bits.reason, f"{WITHOUT_BRANCH}: {lacking}"), branches=rank)
    return replace(bits, low_rank=rank, branches=rank, output_bits=None)  # the sum with the branch has another range than the product


def lacking_branch(layer: Layer, rank: int) -> str | None:
    """Why a layer takes no branch of a rank; None if it does."""
    if len(layer.shape) != 2:
        return f"a {layer.op} takes none"
    outputs, inputs = layer.shape
    if rank * (inputs + outputs) >= inputs * outputs:
        return f"one of rank {rank} would cost as much as the {outputs} x {inputs} weight"
    return None


def _grouped(bits: Rule, layer: Layer, placement: Placement, group: int) -> Rule:
    """Return the rule with groups of input channels, or, where the layer takes none, with the reason."""
    lacking = _no_blocks(layer, placement, group)
    if lacking is None:
        return replace(bits, group=group)
    return replace(bits, reason=_and(bits.reason, f"{WITHOUT_GROUPS}: {lacking}"))


def _no_blocks(layer: Layer, placement: Placement, size: int) -> str | None:
    """Why a layer's weight does not divide into blocks of input channels; None if it does."""
    if not placement.ops[layer.op].blocks:
        return f"a {layer.op} takes no blocks of input channels"
    return f"blocks of {size} do not divide {layer.shape[1]} input channels" if layer.shape[1] % size else None


def _and(reason: str | None, other: str) -> str:
    return other if reason is None else f"{reason}; {other}"


def _block_floats(layer: Layer, precision: Precision, placement: Placement, wide: str | None) -> Rule:
    """Return the rule of a layer at a precision of floats in blocks. Layers without blocks get 8 bits, without blocks.

    Args:
        layer, precision, placement: as in `rule`.
        wide: why the plan asks for 8-bit weights; None if it does not.
    """
    lacking = wide or _no_blocks(layer, placement, BLOCK_FORMATS[precision.form].size)
    if layer.role == "condition" and placement.condition == "float":
        if lacking is None and precision.weight_bits == INT4_BITS:
            return Rule(INT4_BITS, None, None, "float", _FLOAT_CONDITION, precision.form)
        eight = None if lacking is None else f"8-bit weights without blocks: {lacking}"
        return Rule(8, None, None, "float", _and(eight, _FLOAT_CONDITION))
    if lacking is not None:
        return replace(_EIGHT_BIT_FLOATS, reason=f"{WITHOUT_BLOCKS}: {lacking}")
    return Rule(precision.weight_bits, precision.activation_bits, None, "float", None, precision.form, precision.activation_form)


def _bits(layer: Layer, precision: Precision, placement: Placement, overrides: LayerOverrides) -> Rule:
    pattern = _matched(layer, overrides.keep_float)
    if pattern is not None:
        return Rule(None, None, None, "float", f"kept in float by the plan ({pattern})")
    if precision.weight_bits is None or precision.activation_bits is None:
        return Rule(None, None, None, "float", f"precision {precision.name}")
    if layer.role in _FLOAT_ACTIVATIONS:
        return Rule(8, None, None, "float", _FLOAT_ACTIVATIONS[layer.role])
    if layer.name in overrides.noisy:
        return Rule(8, None, None, "float", f"{NOISY}: {overrides.noisy[layer.name]:.0f} dB alone; 8-bit weights, float activations")
    pattern = _matched(layer, overrides.keep_8bit_weights)
    widened = pattern is not None and precision.weight_bits < CONTAINER_BITS
    weight_bits, reason = (CONTAINER_BITS, f"8-bit weights by the plan ({pattern})") if widened else (precision.weight_bits, None)
    if precision.form in BLOCK_FORMATS:
        return _block_floats(layer, precision, placement, reason)
    if precision.activation_bits > CONTAINER_BITS:
        return Rule(weight_bits, None, None, "float", reason or f"precision {precision.name}: weights only")
    if layer.role == "condition" and placement.condition == "float":
        return Rule(weight_bits, None, None, "float", _FLOAT_CONDITION if reason is None else f"{reason}; {_FLOAT_CONDITION}")
    if layer.name in overrides.slower:
        return Rule(weight_bits, None, None, "float", f"integers are slower here: {overrides.slower[layer.name]:.2f}x")
    op = placement.ops[layer.op]
    output_bits = CONTAINER_BITS if op.quantize_output else None
    return Rule(weight_bits, precision.activation_bits, output_bits, op.bias, reason, precision.form, precision.activation_form)


def _matched(layer: Layer, patterns: Sequence[str]) -> str | None:
    """The first pattern that matches the layer's name."""
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(layer.name, pattern)), None)
