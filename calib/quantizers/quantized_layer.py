"""A layer with its quantizers, as the torch oracle uses it and the exporter writes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calib.quantizers.low_rank_branch import LowRankBranch
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer
from calib.quantizers.rules.layers import Layer
from calib.quantizers.rules.placement import Rule

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class QuantizedLayer:
    """One layer at one precision.

    Attributes:
        layer, rule: the layer, and the rule that applies to it.
        integers: int8 weight in torch's order, [channels, ...]; float8_e4m3fn unless the rule's form is `integer`.
        weight: weight quantizer.
        input, output: activation quantizers, None if that side stays in float.
        bias: the layer's own float bias, or None.
        branch: branch in float beside the product; the integers are then those of the rest of the weight.
    """

    layer: Layer
    rule: Rule
    integers: Tensor
    weight: WeightQuantizer
    input: ActivationQuantizer | None
    output: ActivationQuantizer | None
    bias: Tensor | None
    branch: LowRankBranch | None = None

    @property
    def large_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that grow with the layer."""
        return (self.integers,) if self.branch is None else (self.integers, self.branch.down, self.branch.up)

    def quantized_part(self, weight: Tensor) -> Tensor:
        """Return the part of the layer's full-precision weight that is quantized, float32."""
        return weight.float() if self.branch is None else self.branch.rest_of(weight)

    @property
    def bias_scale(self) -> Tensor:
        """float32 [channels]: scale that an integer kernel requires for its int32 bias, input scale times weight scale."""
        assert self.input is not None
        return torch.tensor(self.input.scale, dtype=torch.float32) * self.weight.scale

    def bias_integers(self) -> Tensor:
        """The bias in units of `bias_scale`, int32 [channels]."""
        assert self.bias is not None
        return torch.round(self.bias.double() / self.bias_scale.double()).clamp(-_INT32, _INT32).to(torch.int32)

    def dequantized_bias(self, dtype: torch.dtype) -> Tensor | None:
        """The bias that the graph adds."""
        if self.bias is None or self.rule.bias == "float":
            return None if self.bias is None else self.bias.to(dtype)
        return self.bias_integers().to(dtype) * self.bias_scale.to(dtype)
