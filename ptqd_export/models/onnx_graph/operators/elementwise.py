"""Operators that work value by value."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Result, Value, as_tensor, host_array, plain

Operator = Callable[[OperatorCall], Result]

FLOATS = frozenset({1, 10, 11, 16})
"""ONNX's numbers of float32, float16, float64 and bfloat16."""

INTEGERS: Mapping[int, torch.dtype] = {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}
"""ONNX's numbers of the other types that tensors have here."""


def _unary(function: Callable[[Tensor], Tensor], host: Callable[[Any], Any] | None = None) -> Operator:
    def run(call: OperatorCall) -> Value:
        if host is not None and call.on_host:
            array = call.host(0)
            return host_array([host(plain(one)) for one in array.reshape(-1)], array.shape)
        return function(call.tensor(0))

    return run


def _binary(function: Callable[[Any, Any], Tensor], host: Callable[[Any, Any], Any]) -> Operator:
    def run(call: OperatorCall) -> Value:
        return _pair(call, call.value(0), call.value(1), function, host)

    return run


def _many(function: Callable[[Any, Any], Tensor], host: Callable[[Any, Any], Any]) -> Operator:
    """Return an operator of any number of inputs."""

    def run(call: OperatorCall) -> Value:
        found = call.value(0)
        for index in range(1, len(call.inputs)):
            found = _pair(call, found, call.value(index), function, host)
        return found

    return run


def _pair(call: OperatorCall, a: Value, b: Value, function: Callable[[Any, Any], Tensor], host: Callable[[Any, Any], Any]) -> Value:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        left, right = np.broadcast_arrays(a, b)
        pairs = zip(left.reshape(-1), right.reshape(-1), strict=True)
        return host_array([host(plain(x), plain(y)) for x, y in pairs], left.shape)
    return function(*(as_tensor(one, call.dtype, call.device) for one in (a, b)))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _divide_host(a: Any, b: Any) -> Any:
    if isinstance(a, float | torch.SymFloat) or isinstance(b, float | torch.SymFloat):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a // b  # sizes are not negative


def _mod(call: OperatorCall) -> Value:
    function = torch.fmod if call.get("fmod", 0) else torch.remainder
    return _pair(call, call.value(0), call.value(1), function, operator.mod)


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _cast(call: OperatorCall) -> Value:
    return cast(call, call.get("to"))


def cast(call: OperatorCall, to: int) -> Value:
    """Cast the first input to an ONNX type. All types of floats are one here."""
    value = call.value(0)
    if isinstance(value, Tensor):
        return value.to(call.dtype) if to in FLOATS else value.to(INTEGERS[to])
    kind = torch.sym_float if to in FLOATS else bool if to == 9 else _whole
    return host_array([kind(plain(one)) for one in value.reshape(-1)], value.shape)


def _whole(number: Any) -> Any:
    return number if isinstance(number, torch.SymInt) else int(number)


def _cast_like(call: OperatorCall) -> Value:
    like = call.value(1)
    value = call.value(0)
    if isinstance(value, Tensor) and isinstance(like, Tensor):
        return value.to(like.dtype)
    return as_tensor(value, call.dtype, call.device) if isinstance(like, Tensor) else value


def _clip(call: OperatorCall) -> Value:
    low = call.value(1) if call.has(1) else call.get("min")
    high = call.value(2) if call.has(2) else call.get("max")
    found = call.value(0)
    for bound, function, host in ((low, torch.maximum, max), (high, torch.minimum, min)):
        if bound is not None:
            limit = bound if isinstance(bound, Tensor | np.ndarray) else np.array(bound)
            found = _pair(call, found, limit, _of_one_type(function), host)
    return found


def _of_one_type(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: function(a, b.to(a.dtype))


def _where(call: OperatorCall) -> Value:
    if call.on_host:
        chosen = np.broadcast_arrays(*(call.host(index) for index in range(3)))
        triples = zip(*(one.reshape(-1) for one in chosen), strict=True)
        return host_array([a if condition else b for condition, a, b in triples], chosen[0].shape)
    return torch.where(call.tensor(0).bool(), call.tensor(1), call.tensor(2))


def _gelu(call: OperatorCall) -> Value:
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


def _leaky_relu(call: OperatorCall) -> Value:
    return F.leaky_relu(call.tensor(0), call.get("alpha", 0.01))


def _prelu(call: OperatorCall) -> Value:
    x, slope = call.tensor(0), call.tensor(1)
    return torch.where(x < 0, x * slope, x)


def _elu(call: OperatorCall) -> Value:
    return F.elu(call.tensor(0), call.get("alpha", 1.0))


def _hard_sigmoid(call: OperatorCall) -> Value:
    slope, middle = float(call.get("alpha", 0.2)), float(call.get("beta", 0.5))
    return (call.tensor(0) * slope + middle).clamp(0, 1)


def _dequantized(call: OperatorCall) -> Value:
    """Weights are stored in integers at times. Scales for blocks are not supported, as exporters of float networks write none."""
    x, scale, axis = call.tensor(0), call.tensor(1), call.get("axis", 1)
    sizes = [1] * x.ndim
    if scale.ndim == 1 and scale.numel() > 1:
        sizes[axis] = scale.numel()
    zero = call.tensor(2).to(call.dtype).reshape(sizes) if call.has(2) else 0
    return (x.to(call.dtype) - zero) * scale.reshape(sizes)


def _identity(call: OperatorCall) -> Value:
    return call.value(0)


def _root(x: Any) -> Any:
    return torch.sym_sqrt(x) if isinstance(x, torch.SymFloat | torch.SymInt) else math.sqrt(x)


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs, abs),
    "Add": _binary(operator.add, operator.add),
    "And": _binary(torch.logical_and, lambda a, b: bool(a) and bool(b)),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _unary(torch.ceil, lambda x: x if isinstance(x, int) else float(math.ceil(x))),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "DequantizeLinear": _dequantized,
    "Div": _binary(_divide, _divide_host),
    "Dropout": _identity,
    "Elu": _elu,
    "Equal": _binary(torch.eq, lambda a, b: bool(a == b)),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor, lambda x: x if isinstance(x, int) else float(math.floor(x))),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt, lambda a, b: bool(a > b)),
    "GreaterOrEqual": _binary(torch.ge, lambda a, b: bool(a >= b)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _identity,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": _binary(torch.lt, lambda a, b: bool(a < b)),
    "LessOrEqual": _binary(torch.le, lambda a, b: bool(a <= b)),
    "Log": _unary(torch.log, math.log),
    "Max": _many(torch.maximum, max),
    "Min": _many(torch.minimum, min),
    "Mish": _unary(F.mish),
    "Mod": _mod,
    "Mul": _binary(operator.mul, operator.mul),
    "Neg": _unary(torch.neg, operator.neg),
    "Not": _unary(torch.logical_not, operator.not_),
    "Or": _binary(torch.logical_or, lambda a, b: bool(a) or bool(b)),
    "PRelu": _prelu,
    "Pow": _binary(_power, operator.pow),
    "Reciprocal": _unary(torch.reciprocal, lambda x: 1.0 / x),
    "Relu": _unary(F.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(F.softplus),
    "Sqrt": _unary(torch.sqrt, _root),
    "Sub": _binary(operator.sub, operator.sub),
    "Sum": _many(operator.add, operator.add),
    "Tan": _unary(torch.tan),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
    "Xor": _binary(torch.logical_xor, operator.xor),
}
"""The operators by type."""
