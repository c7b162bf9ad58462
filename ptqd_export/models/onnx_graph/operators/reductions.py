"""Operators that reduce axes, and those that normalize along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Result, Value, host_array, plain

SOFTMAX_ON_ONE_AXIS = 13
"""First version in which a softmax is over one axis; before, it is over that axis and all behind it."""


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor], host: Callable[[list[Any]], Any] | None = None) -> Any:
    def run(call: OperatorCall) -> Value:
        axes, keeps = call.numbers(1, "axes"), bool(call.get("keepdims", 1))
        if host is not None and call.on_host:
            found = host([plain(one) for one in call.host(0).reshape(-1)])
            return host_array([found], (1,) * call.host(0).ndim if keeps else ())
        x = call.tensor(0)
        if not axes and call.get("noop_with_empty_axes", 0):
            return x
        return function(x, [int(axis) for axis in axes] if axes else list(range(x.ndim)), keeps)

    return run


def _along_each(function: Callable[[Tensor, int, bool], Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    def run(x: Tensor, axes: list[int], keeps: bool) -> Tensor:
        for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
            x = function(x, axis, keeps)
        return x

    return run


def _extreme(function: Callable[..., Tensor]) -> Callable[[OperatorCall], Value]:
    """Return ArgMax or ArgMin."""

    def run(call: OperatorCall) -> Value:
        return function(call.tensor(0), dim=call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))

    return run


def _softmax(function: Callable[[Tensor, int], Tensor]) -> Callable[[OperatorCall], Value]:
    def run(call: OperatorCall) -> Value:
        x = call.tensor(0)
        if call.version >= SOFTMAX_ON_ONE_AXIS:
            return function(x, call.get("axis", -1))
        axis = call.get("axis", 1) % x.ndim
        if axis == x.ndim - 1:
            return function(x, -1)
        return function(x.flatten(axis), -1).reshape(x.shape)

    return run


def _layer_norm(call: OperatorCall) -> Result:
    x, axis = call.tensor(0), call.get("axis", -1)
    shape = list(x.shape[axis % x.ndim :])
    return F.layer_norm(x, shape, call.tensor(1), call.optional(2), call.get("epsilon", 1e-5))


def _rms_norm(call: OperatorCall) -> Value:
    x, axis = call.tensor(0), call.get("axis", -1)
    axes = list(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + call.get("epsilon", 1e-5)) * call.tensor(1)


def _instance_norm(call: OperatorCall) -> Value:
    scale = call.tensor(1)
    return F.group_norm(call.tensor(0), scale.shape[0], scale, call.tensor(2), call.get("epsilon", 1e-5))


def _group_norm(call: OperatorCall) -> Value:
    """GroupNormalization has one scale for each group up to version 20, and then one for each channel."""
    x, groups = call.tensor(0), call.get("num_groups")
    scale, bias = (_of_channels(call.optional(index), x.shape[1]) for index in (1, 2))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


def _of_channels(scale: Tensor | None, channels: int) -> Tensor | None:
    if scale is None or len(scale) == channels:
        return scale
    return scale.repeat_interleave(channels // len(scale))


def _batch_norm(call: OperatorCall) -> Value:
    x, scale, bias, mean, variance = call.tensors()[:5]
    return F.batch_norm(x, mean, variance, scale, bias, eps=call.get("epsilon", 1e-5))


def _lp_norm(call: OperatorCall) -> Value:
    x, p, axis = call.tensor(0), call.get("p", 2), call.get("axis", -1)
    length: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / length


REDUCTIONS: Mapping[str, Callable[[OperatorCall], Result]] = {
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax(F.log_softmax),
    "LpNormalization": _lp_norm,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduction(lambda x, axes, keeps: x.abs().sum(axes, keeps)),
    "ReduceL2": _reduction(lambda x, axes, keeps: x.square().sum(axes, keeps).sqrt()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(lambda x, axes, keeps: x.amax(axes, keeps), max),
    "ReduceMean": _reduction(lambda x, axes, keeps: x.mean(axes, keeps)),
    "ReduceMin": _reduction(lambda x, axes, keeps: x.amin(axes, keeps), min),
    "ReduceProd": _reduction(
        _along_each(lambda x, axis, keeps: x.prod(axis, keeps)), lambda numbers: reduce(lambda a, b: a * b, numbers, 1)
    ),
    "ReduceSum": _reduction(lambda x, axes, keeps: x.sum(axes, keeps), sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keeps: x.square().sum(axes, keeps)),
    "Softmax": _softmax(F.softmax),
}
"""The operators by type."""
