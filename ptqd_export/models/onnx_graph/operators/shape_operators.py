"""Operators that move values, and those that compute shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engines.errors import PtqdError
from ptqd_export.models.onnx_graph.operators.elementwise import FLOATS, INTEGERS
from ptqd_export.models.onnx_graph.operators.operator_call import HostArray, OperatorCall, Result, Value, host_array, plain

LAST = 2**31
"""A slice that ends here or behind ends with its axis: exporters write the largest int64."""

HOST_RANGE = 4096
"""A Range of at most this many numbers stays on the host."""


def _shape(call: OperatorCall) -> Value:
    sizes = list(call.value(0).shape)
    return host_array(sizes[slice(call.get("start", 0), call.get("end"))])


def _size(call: OperatorCall) -> Value:
    return host_array([math.prod(call.value(0).shape)], ())


def _reshape(call: OperatorCall) -> Value:
    x = call.value(0)
    target = call.numbers(1, "shape") or []
    kept = call.get("allowzero", 0) == 0
    sizes = [x.shape[axis] if kept and _is(size, 0) else plain(size) for axis, size in enumerate(target)]
    return x.reshape(tuple(sizes))


def _is(size: Any, number: int) -> bool:
    return isinstance(size, int | np.integer) and int(size) == number


def _flatten(call: OperatorCall) -> Value:
    x, axis = call.tensor(0), call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    if axis == 1:
        return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _transpose(call: OperatorCall) -> Value:
    x = call.value(0)
    order = call.get("perm") or range(x.ndim)[::-1]
    return x.permute(*order) if isinstance(x, Tensor) else x.transpose(tuple(order))


def _unsqueeze(call: OperatorCall) -> Value:
    x, axes = call.value(0), [int(axis) for axis in call.numbers(1, "axes") or []]
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis) if isinstance(x, Tensor) else np.expand_dims(x, axis)
    return x


def _squeeze(call: OperatorCall) -> Value:
    x, axes = call.value(0), call.numbers(1, "axes")
    chosen = [axis for axis, size in enumerate(x.shape) if _is(size, 1)] if axes is None else [int(axis) % x.ndim for axis in axes]
    for axis in sorted(chosen, reverse=True):
        x = x.squeeze(axis)
    return x


def _expand(call: OperatorCall) -> Value:
    """Broadcast both ways: a 1 in the target keeps the size of the input."""
    x, target = call.value(0), call.numbers(1, "shape") or []
    rank = max(x.ndim, len(target))
    own = [1] * (rank - x.ndim) + list(x.shape)
    asked = [1] * (rank - len(target)) + [plain(one) for one in target]
    sizes = [size if _is(wanted, 1) else wanted for size, wanted in zip(own, asked, strict=True)]
    if isinstance(x, Tensor):
        return x.expand(sizes)
    return np.broadcast_to(x, tuple(sizes))


def _tile(call: OperatorCall) -> Value:
    x, repeats = call.value(0), [plain(one) for one in call.numbers(1, "repeats") or []]
    return x.repeat(repeats) if isinstance(x, Tensor) else np.tile(x, repeats)


def _concat(call: OperatorCall) -> Value:
    axis = call.get("axis", 1)
    present = [value for value in call.inputs if value is not None]
    if call.on_host:
        arrays: list[HostArray] = [np.asarray(value, dtype=object) for value in present]
        return np.concatenate(arrays, axis)
    return torch.cat(call.tensors(), axis)


def _split(call: OperatorCall) -> Result:
    x, axis, parts = call.value(0), call.get("axis", 0), len(call.node.outputs)
    sizes = call.numbers(1, "split")
    if sizes is None:
        parts = call.get("num_outputs", parts)
        length = -(-x.shape[axis] // parts)
        sizes = [length] * (parts - 1) + [x.shape[axis] - length * (parts - 1)]
    sizes = [plain(size) for size in sizes]
    if isinstance(x, Tensor):
        return tuple(torch.split(x, sizes, axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _slice(call: OperatorCall) -> Value:
    x = call.value(0)
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or range(len(starts))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        x = _sliced(x, int(axis) % x.ndim, plain(start), plain(end), int(step))
    return x


def _sliced(x: Value, axis: int, start: Any, end: Any, step: int) -> Value:
    if step < 0:
        return _sliced_backwards(x, axis, start, end, step)
    last = None if isinstance(end, int) and end >= LAST else end
    places: list[Any] = [slice(None)] * x.ndim
    places[axis] = slice(start, last, step)
    return x[tuple(places)]


def _sliced_backwards(x: Value, axis: int, start: Any, end: Any, step: int) -> Value:
    chosen = list(range(x.shape[axis]))[slice(start, None if end <= -LAST else end, step)]
    if isinstance(x, Tensor):
        return x.index_select(axis, torch.tensor(chosen, device=x.device))
    return np.take(x, chosen, axis)


def _gather(call: OperatorCall) -> Value:
    x, at, axis = call.value(0), call.value(1), call.get("axis", 0)
    axis += x.ndim if axis < 0 else 0
    if not isinstance(x, Tensor) and not isinstance(at, Tensor):
        return np.asarray(np.take(np.asarray(x, dtype=object), at.astype(np.int64), axis), dtype=object)
    x = call.tensor(0)
    if not isinstance(at, Tensor) and at.ndim == 0:
        return x.select(axis, plain(at.reshape(-1)[0]))
    index = call.tensor(1).long()
    index = torch.where(index < 0, index + x.shape[axis], index)
    return x.index_select(axis, index.reshape(-1)).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_elements(call: OperatorCall) -> Value:
    x, index, axis = call.tensor(0), call.tensor(1).long(), call.get("axis", 0)
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))


def _scatter_nd(call: OperatorCall) -> Value:
    if call.get("reduction", "none") != "none":
        raise PtqdError("A node of the graph adds up what it scatters, which is not supported.", found=call.node)
    x, index, updates = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    return x.index_put(tuple(index.unbind(-1)), updates.to(x.dtype))


def _scatter_elements(call: OperatorCall) -> Value:
    if call.get("reduction", "none") != "none":
        raise PtqdError("A node of the graph adds up what it scatters, which is not supported.", found=call.node)
    return call.tensor(0).scatter(call.get("axis", 0), call.tensor(1).long(), call.tensor(2))


def _constant_of_shape(call: OperatorCall) -> Value:
    sizes = [plain(size) for size in call.host(0).reshape(-1)]
    given = call.get("value")
    number = 0.0 if given is None else plain(np.asarray(given).reshape(-1)[0])
    if len(sizes) <= 1 and not isinstance(number, float) and all(isinstance(size, int) for size in sizes):
        return host_array([number] * math.prod(sizes), sizes)
    kind = call.dtype if isinstance(number, float) else torch.bool if isinstance(number, bool) else torch.int64
    return torch.full(sizes, number, dtype=kind, device=call.device)


def _range(call: OperatorCall) -> Value:
    start, limit, step = (plain(call.host(index).reshape(-1)[0]) for index in range(3))
    ends = (start, limit, step)
    if all(isinstance(one, int) for one in ends) and (limit - start) // step <= HOST_RANGE:
        return host_array(list(range(start, limit, step)))
    whole = all(isinstance(one, int | torch.SymInt) for one in ends)
    return torch.arange(start, limit, step, dtype=torch.int64 if whole else call.dtype, device=call.device)


def _trilu(call: OperatorCall) -> Value:
    diagonal = int(plain(call.host(1).reshape(-1)[0])) if call.has(1) else 0
    return torch.triu(call.tensor(0), diagonal) if call.get("upper", 1) else torch.tril(call.tensor(0), diagonal)


def _eye_like(call: OperatorCall) -> Value:
    rows, columns = call.value(0).shape
    found = torch.ones(rows, columns, device=call.device, dtype=call.dtype)
    k = call.get("k", 0)
    kind = call.get("dtype", 1)
    found = torch.triu(torch.tril(found, k), k)
    return found if kind in FLOATS else found.to(INTEGERS[kind])


def _pad(call: OperatorCall) -> Value:
    x = call.tensor(0)
    pads = [int(plain(one)) for one in call.numbers(1, "pads") or []]
    axes = [int(axis) % x.ndim for axis in call.host(3).reshape(-1)] if call.has(3) else list(range(x.ndim))
    value = float(plain(call.host(2).reshape(-1)[0])) if call.has(2) else call.get("value", 0.0)
    ends = [(0, 0)] * x.ndim
    for place, axis in enumerate(axes):
        ends[axis] = (pads[place], pads[place + len(axes)])
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[call.get("mode", "constant")]
    first = next((axis for axis, end in enumerate(ends) if any(end)), x.ndim)
    if first == x.ndim:
        return x
    first = first if mode == "constant" else min(first, 2)
    flat = [size for end in reversed(ends[first:]) for size in end]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


def _depth_to_space(call: OperatorCall) -> Value:
    x, size = call.tensor(0), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(batch, channels // size**2, height * size, width * size)


def _space_to_depth(call: OperatorCall) -> Value:
    x, size = call.tensor(0), call.get("blocksize")
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * size**2, height // size, width // size)


def _cumulative_sum(call: OperatorCall) -> Value:
    axis = int(plain(call.host(1).reshape(-1)[0]))
    x = call.tensor(0)
    if call.get("reverse", 0):
        x = x.flip(axis)
    found = torch.cumsum(x, axis)
    found = found - x if call.get("exclusive", 0) else found
    return found.flip(axis) if call.get("reverse", 0) else found


SHAPES: Mapping[str, Callable[[OperatorCall], Result]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""The operators by type."""
