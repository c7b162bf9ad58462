"""Attention, and the fused operators that ONNX Runtime's optimizer writes (domain `com.microsoft`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from engines.errors import PtqdError
from ptqd_export.models.onnx_graph.operators.operator_call import OperatorCall, Result, Value

MICROSOFT = "com.microsoft"

PARTS = "parts"
"""Domain of operators that no graph has: those that fused ones are split into, where the standard has none."""


def _attention(call: OperatorCall) -> Value:
    """Attention-23: queries, keys and values [B, heads, S, D], or [B, S, heads * D] with the numbers of heads as attributes."""
    q, k, v = (call.tensor(index) for index in range(3))
    if any(call.has(index) for index in (4, 5, 6)) or call.get("softcap", 0.0):
        raise _unsupported(call, "a cache of keys, or a soft cap")
    flat = q.ndim == 3
    if flat:
        heads, of_keys = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = _heads(q, heads), _heads(k, of_keys), _heads(v, of_keys)
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(
        q, k, v, call.optional(3), is_causal=bool(call.get("is_causal", 0)), scale=call.get("scale"), enable_gqa=grouped
    )
    return _joined(out) if flat else out


def _multi_head_attention(call: OperatorCall) -> Value:
    """MultiHeadAttention: queries, keys and values [B, S, heads * D]; a bias of all three, and one of the scores."""
    if not (call.has(1) and call.has(2)) or any(call.has(index) for index in (4, 6, 7)) or call.tensor(1).ndim != 3:
        raise _unsupported(call, "packed queries and keys, a padding mask, or a cache")
    q, k, v = (call.tensor(index) for index in range(3))
    bias = call.optional(3)
    if bias is not None:
        of_q, of_k, of_v = torch.split(bias, [q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = q + of_q, k + of_k, v + of_v
    heads = call.get("num_heads")
    scale, causal = call.get("scale") or None, bool(call.get("unidirectional", 0))
    out = F.scaled_dot_product_attention(
        _heads(q, heads), _heads(k, heads), _heads(v, heads), call.optional(5), is_causal=causal, scale=scale
    )
    return _joined(out)


def _heads(x: Tensor, heads: int) -> Tensor:
    found: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return found


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _unsupported(call: OperatorCall, what: str) -> PtqdError:
    return PtqdError("A node of the graph is not supported.", found=f"{call.node}: {what}", mend="export without these options")


def _bias_gelu(call: OperatorCall) -> Value:
    return F.gelu(call.tensor(0) + call.tensor(1))


def _gelu(call: OperatorCall) -> Value:
    return F.gelu(call.tensor(0))


def _fast_gelu(call: OperatorCall) -> Value:
    bias = call.optional(1)
    return F.gelu(call.tensor(0) if bias is None else call.tensor(0) + bias, approximate="tanh")


def _quick_gelu(call: OperatorCall) -> Value:
    x = call.tensor(0)
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


def _skip_layer_norm(call: OperatorCall) -> Result:
    total = call.tensor(0) + call.tensor(1)
    bias = call.optional(4)
    total = total if bias is None else total + bias
    out = F.layer_norm(total, [total.shape[-1]], call.tensor(2), call.optional(3), call.get("epsilon", 1e-12))
    return out, out, out, total


def _swap_last_axes(call: OperatorCall) -> Value:
    return call.tensor(0).transpose(-1, -2)


def _scale(call: OperatorCall) -> Value:
    factor: float = call.get("factor")
    return call.tensor(0) * factor


FUSED: Mapping[str, Callable[[OperatorCall], Result]] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
}
"""The fused operators by type. The reader splits those that hold a weight, such as FusedConv, into operators of the standard."""

ATTENTION: Mapping[str, Callable[[OperatorCall], Result]] = {"Attention": _attention}
"""The attention of the standard."""

FUSED_PARTS: Mapping[str, Callable[[OperatorCall], Result]] = {"Scale": _scale, "SwapLastAxes": _swap_last_axes}
"""The operators of the domain `PARTS`."""
