"""Attention with its quantizers, as the torch oracle uses it and the exporter writes it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from calib.quantizers.attention.attention_call import AttentionCall, AttentionCalls
from calib.quantizers.quantizers import ActivationQuantizer, Float8ActivationQuantizer
from calib.quantizers.rules.precision import Form

INPUTS = ("query", "key", "value")
"""Observed inputs of the products."""


@dataclass(frozen=True)
class QuantizedAttention:
    """One attention at one precision.

    Attributes:
        call: number of its call in a run of the network, which is also its place in the graph.
        name: name of the module that calls it.
        query, key: quantizers of the query and key after they were multiplied by the root of the scale.
        value: quantizer of the value.
        weights: quantizer of the softmax.
    """

    call: int
    name: str
    query: ActivationQuantizer
    key: ActivationQuantizer
    value: ActivationQuantizer
    weights: ActivationQuantizer


def weights_quantizer(form: Form) -> ActivationQuantizer:
    """Return the quantizer of a softmax, whose range is known: 1 becomes the largest value of the form."""
    if form == "e4m3":
        return Float8ActivationQuantizer.of(1.0)
    return ActivationQuantizer(8, signed=True, scale=float(torch.tensor(1 / 127)), zero_point=0)


def fake_attention(attention: Iterable[QuantizedAttention]) -> AbstractContextManager[object]:
    """Compute the given attention with fake-quantized products in one run of the network, inside the `with` block.

    This is the oracle of the graph's attention, as `calib.quantizers.oracle` is that of its layers.
    """
    quantized = {one.call: one for one in attention}
    if not quantized:
        return nullcontext()

    def computed(number: int, call: AttentionCall) -> Tensor | None:
        if number not in quantized:
            return None
        one = quantized[number]
        return call.output(one.query.fake, one.key.fake, one.value.fake, one.weights.fake)

    return AttentionCalls(computed)
