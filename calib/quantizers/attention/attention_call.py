"""Calls of PyTorch's scaled dot product attention, one by one and in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Fake = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call, as `torch.nn.functional.scaled_dot_product_attention` takes them.

    Attributes:
        query, key, value: [batch, heads, tokens, size].
        attn_mask: bool or float mask that broadcasts to [batch, heads, queries, keys], or None.
        scale: factor of the scores; None for 1 / sqrt(size).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def scaled_query(self) -> Tensor:
        """The query times the root of the scale: what enters the product with the scaled keys."""
        return self.query * self._root

    @property
    def scaled_key(self) -> Tensor:
        return self.key * self._root

    @property
    def macs(self) -> int:
        """Multiply-accumulates of both products per sample."""
        keys, size = self.value.shape[-2:]
        return self.query[0].numel() * keys + self.query[0, ..., 0].numel() * keys * size

    def output(self, query: Fake, key: Fake, value: Fake, weights: Fake) -> Tensor:
        """Compute the attention from its two products.

        Args:
            query, key, value: applied to the scaled query, the scaled key and the value.
            weights: applied to the softmax, which lies in [0, 1].
        """
        q, k, v = query(self.scaled_query), key(self.scaled_key), value(self.value)
        if self.enable_gqa:
            k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        scores = q @ k.transpose(-2, -1)
        if self.is_causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).tril().logical_not(), -math.inf)
        if self.attn_mask is not None:
            mask = self.attn_mask
            scores = scores.masked_fill(mask.logical_not(), -math.inf) if mask.dtype == torch.bool else scores + mask
        softmax = scores.softmax(-1)
        return weights(softmax.masked_fill(softmax.isnan(), 0)) @ v  # a query that sees no key

    @property
    def _root(self) -> float:
        return math.sqrt(1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale)


class AttentionCalls(TorchFunctionMode):
    """Gives every call of scaled dot product attention inside the `with` block to a function, with its number.

    Args:
        computed: takes the number of the call and the call, and returns its output; None computes it as PyTorch does.
    """

    def __init__(self, computed: Callable[[int, AttentionCall], Tensor | None]) -> None:
        super().__init__()
        self.count = 0
        self._computed = computed

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        if func is functional.scaled_dot_product_attention:
            number, self.count = self.count, self.count + 1
            out = self._computed(number, AttentionCall(*args, **(kwargs or {})))
            if out is not None:
                return out
        return func(*args, **(kwargs or {}))
