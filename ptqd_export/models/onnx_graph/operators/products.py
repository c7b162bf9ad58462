"""Convolutions, pools, products of matrices, and changes of size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.errors import PtqdError
from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Result, Value, plain

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)


def begin_and_end(call: OperatorCall, kernel: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the padding before and behind each axis, as the attributes say or ask to be computed.

    Args:
        call: call of a convolution or a pool.
        kernel: size of the kernel by axis.
        sizes: sizes of the input by axis.
    """
    axes, automatic = len(kernel), call.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", ""):
        pads = list(call.get("pads") or [0] * 2 * axes)
        return pads[:axes], pads[axes:]
    if automatic == "VALID":
        return [0] * axes, [0] * axes
    strides, dilations = call.get("strides") or [1] * axes, call.get("dilations") or [1] * axes
    totals = [
        max(0, (-(-size // stride) - 1) * stride + (length - 1) * dilation + 1 - size)
        for size, length, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less = [total // 2 for total in totals]
    more = [total - half for total, half in zip(totals, less, strict=True)]
    return (less, more) if automatic == "SAME_UPPER" else (more, less)


def padded(x: Tensor, begin: Sequence[int], end: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Return the input, padded where both ends differ, and the padding that is left for the operator."""
    if list(begin) == list(end):
        return x, list(begin)
    flat = [size for pair in reversed(list(zip(begin, end, strict=True))) for size in pair]
    return F.pad(x, flat, value=value), [0] * len(begin)


def _convolution(call: OperatorCall) -> Value:
    x, weight = call.tensor(0), call.tensor(1)
    axes = weight.ndim - 2
    begin, end = begin_and_end(call, weight.shape[2:], x.shape[2:])
    x, padding = padded(x, begin, end)
    strides, dilations = call.get("strides") or [1] * axes, call.get("dilations") or [1] * axes
    return CONVOLUTIONS[axes - 1](x, weight, call.optional(2), strides, padding, dilations, call.get("group", 1))


def transposed_padding(call: OperatorCall, axes: int) -> tuple[list[int], list[int]]:
    """Return the padding and the output padding of a ConvTranspose.

    Raises:
        PtqdError: the node asks for an output of a given size, or pads both ends differently in a way that torch does not have.
    """
    pads = list(call.get("pads") or [0] * 2 * axes)
    begin, end = pads[:axes], pads[axes:]
    extra = list(call.get("output_padding") or [0] * axes)
    extra = [more + first - last for more, first, last in zip(extra, begin, end, strict=True)]
    plain_size = call.get("output_shape") is None and call.get("auto_pad", "NOTSET") in ("NOTSET", "", "VALID")
    if not plain_size or min(extra) < 0:
        raise PtqdError("A transposed convolution of the graph chooses its size, which is not supported.", found=call.node)
    return begin, extra


def _transposed_convolution(call: OperatorCall) -> Value:
    x, weight = call.tensor(0), call.tensor(1)
    axes = weight.ndim - 2
    padding, extra = transposed_padding(call, axes)
    strides, dilations = call.get("strides") or [1] * axes, call.get("dilations") or [1] * axes
    return TRANSPOSED[axes - 1](x, weight, call.optional(2), strides, padding, extra, call.get("group", 1), dilations)


def _average_pool(call: OperatorCall) -> Value:
    x, kernel = call.tensor(0), call.get("kernel_shape")
    begin, end = begin_and_end(call, kernel, x.shape[2:])
    counts = bool(call.get("count_include_pad", 0))
    if begin != end and not counts:
        raise PtqdError(
            "A pool of the graph pads both ends differently and leaves the padding out, which is not supported.", found=call.node
        )
    x, padding = padded(x, begin, end)
    strides = call.get("strides") or [1] * len(kernel)
    return _AVERAGES[len(kernel) - 1](x, kernel, strides, padding, bool(call.get("ceil_mode", 0)), counts)


def _max_pool(call: OperatorCall) -> Value:
    x, kernel = call.tensor(0), call.get("kernel_shape")
    begin, end = begin_and_end(call, kernel, x.shape[2:])
    x, padding = padded(x, begin, end, -math.inf)
    strides, dilations = call.get("strides") or [1] * len(kernel), call.get("dilations") or [1] * len(kernel)
    return _MAXIMA[len(kernel) - 1](x, kernel, strides, padding, dilations, bool(call.get("ceil_mode", 0)))


def _global_average(call: OperatorCall) -> Value:
    x = call.tensor(0)
    return x.mean(list(range(2, x.ndim)), keepdim=True)


def _global_max(call: OperatorCall) -> Value:
    x = call.tensor(0)
    return x.amax(list(range(2, x.ndim)), keepdim=True)


def _matrix_product(call: OperatorCall) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


def _general_product(call: OperatorCall) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    b = b.transpose(0, 1) if call.get("transB", 0) else b
    found: Tensor = torch.matmul(a, b) * call.get("alpha", 1.0)
    c = call.optional(2)
    return found if c is None else found + c * call.get("beta", 1.0)


def _einsum(call: OperatorCall) -> Value:
    return torch.einsum(call.get("equation"), *call.tensors())


def _resize(call: OperatorCall) -> Value:
    """Resize the axes behind the second, by constant factors or to given sizes."""
    x = call.tensor(0)
    before_sizes = call.version < 11
    scales = call.numbers(1, "scales") if before_sizes else call.numbers(2, "scales")
    sizes = None if before_sizes else call.numbers(3, "sizes")
    axes = call.get("axes")
    factors = _spread(scales, axes, x.ndim, [1.0] * x.ndim) if scales else None
    wanted = _spread(sizes, axes, x.ndim, list(x.shape)) if sizes else None
    kept = factors[:2] if factors is not None else [1, 1]
    if any(factor != 1 for factor in kept) or call.get("keep_aspect_ratio_policy", "stretch") != "stretch" or call.get("antialias", 0):
        raise PtqdError(
            "A Resize of the graph is not supported.", found=call.node, expected="the axes behind the channels, without antialias"
        )
    return _interpolated(call, x, None if wanted is None else wanted[2:], None if factors is None else factors[2:])


def _spread(numbers: Sequence[Any], axes: Sequence[int] | None, rank: int, others: list[Any]) -> list[Any]:
    if axes is None:
        return [plain(one) for one in numbers]
    for number, axis in zip(numbers, axes, strict=True):
        others[axis % rank] = plain(number)
    return others


def _interpolated(call: OperatorCall, x: Tensor, sizes: list[Any] | None, factors: list[float] | None) -> Tensor:
    mode = call.get("mode", "nearest")
    where = call.get("coordinate_transformation_mode", "half_pixel" if call.version >= 11 else "asymmetric")
    if mode == "nearest":
        return _nearest(call, x, sizes, factors, where)
    kinds = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    kind = kinds.get((mode, x.ndim))
    aligned = where == "align_corners"
    if kind is None or where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise PtqdError(
            "A Resize of the graph is not supported.", found=f"{call.node}: {mode}, {where}", expected="half_pixel or align_corners"
        )
    if factors is not None:
        sizes = [math.floor(size * factor) for size, factor in zip(x.shape[2:], factors, strict=True)]
    return F.interpolate(x, size=sizes, mode=kind, align_corners=aligned)


def _nearest(call: OperatorCall, x: Tensor, sizes: list[Any] | None, factors: list[float] | None, where: str) -> Tensor:
    """Copy the nearest value. Whole factors repeat values in every mode that exporters write; others need torch's own mode."""
    own = [int(size) for size in x.shape[2:]]
    wanted = (
        [math.floor(size * factor) for size, factor in zip(own, factors, strict=True)]
        if factors is not None
        else [int(s) for s in sizes or []]
    )
    whole = all(new % old == 0 for new, old in zip(wanted, own, strict=True))
    rounding = call.get("nearest_mode", "round_prefer_floor" if call.version >= 11 else "floor")
    repeats = (where, rounding) in _REPEATS
    if not (whole and repeats) and (where, rounding) != ("asymmetric", "floor"):
        raise PtqdError(
            "A Resize of the graph is not supported.",
            found=f"{call.node}: nearest, {where}, {rounding}, from {own} to {wanted}",
            expected="whole factors, or asymmetric and floor",
        )
    return F.interpolate(x, size=wanted, mode="nearest")


_REPEATS = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("half_pixel_symmetric", "round_prefer_floor"),
}
"""Modes in which a whole factor repeats every value as often."""


def _upsample(call: OperatorCall) -> Value:
    factors = [float(plain(one)) for one in call.numbers(1, "scales") or []]
    return _interpolated(call, call.tensor(0), None, factors[2:])


PRODUCTS: Mapping[str, Callable[[OperatorCall], Result]] = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "Gemm": _general_product,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MatMul": _matrix_product,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _upsample,
}
"""The operators by type."""
