"""Precisions by name: `w4a8` means 4-bit weights with 8-bit activations, `w4a16` 4-bit weights with float activations, `fp8` 8-bit floats
(E4M3) for both, `nvfp4` 4-bit floats in blocks for both, `fp32` all float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from engines.errors import UsageError, did_you_mean

WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 16)
FLOAT_WIDTHS: Mapping[str, int] = MappingProxyType({"fp16": 16, "fp32": 32})

Form: TypeAlias = Literal["integer", "e4m3", "nvfp4", "mxfp8"]
"""How quantized values are stored: integers, floats with 4 exponent and 3 mantissa bits (Micikevicius et al., arXiv 2209.05433), or floats
in blocks of input channels, each with a scale (`calib.quantizers.floats`).
"""


AttentionForm: TypeAlias = Literal["float", "fp8", "int8"]
"""What the products of attention compute with, as a plan names it."""

ATTENTION_FORMS: Mapping[AttentionForm, Form] = MappingProxyType({"fp8": "e4m3", "int8": "integer"})
"""Form of the inputs of quantized products."""


@dataclass(frozen=True)
class BlockFormat:
    """How many neighbouring input channels share a scale, the bits of a value, and those of a scale."""

    size: int
    bits: int
    scale_bits: int = 8

    @property
    def stored_bits(self) -> float:
        """Bits of a value with its share of the block's scale."""
        return self.bits + self.scale_bits / self.size


BLOCK_FORMATS: Mapping[Form, BlockFormat] = MappingProxyType({"nvfp4": BlockFormat(16, 4), "mxfp8": BlockFormat(32, 8)})


def stored_bits(bits: int, form: Form) -> float:
    """Bits of a value in this form, with its share of a block's scale."""
    return BLOCK_FORMATS[form].stored_bits if form in BLOCK_FORMATS else bits


QUANTIZED_FLOATS: Mapping[str, tuple[int, int, Form, Form]] = MappingProxyType(
    {
        "fp8": (8, 8, "e4m3", "e4m3"),
        "mxfp8": (8, 8, "mxfp8", "mxfp8"),
        "nvfp4": (4, 4, "nvfp4", "nvfp4"),
        "nvfp4a8": (4, 8, "nvfp4", "e4m3"),
    }
)
"""Precisions whose quantized values are floats: bits of weights and activations, and their forms."""

PATTERN = r"^(w[2-8]a([4-8]|16)|fp8|mxfp8|nvfp4|nvfp4a8|fp16|fp32)$"
"""The grammar as a regular expression, for the JSON Schema of the plan."""

GRAMMAR = "w2 to w8 followed by a4 to a8 or a16 (float activations), such as w4a8; or fp8, mxfp8, nvfp4, nvfp4a8, fp16 or fp32"
"""The grammar in words, for error messages."""


@dataclass(frozen=True)
class Precision:
    """A pair of bit widths, both None for float precisions. 16 activation bits mean float activations, so only the weights are quantized.
    `fp8` and its like count as quantized: their values have scales, like integers. `form` is that of the weights.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    form: Form = "integer"
    activation_form: Form = "integer"

    @classmethod
    def parse(cls, name: str) -> Precision:
        """Return the precision of that name. Raises UsageError if the name is not in the grammar."""
        if name in FLOAT_WIDTHS:
            return cls(name, None, None)
        if name in QUANTIZED_FLOATS:
            return cls(name, *QUANTIZED_FLOATS[name])
        if not re.fullmatch(PATTERN, name):
            raise UsageError(f'Unknown precision "{name}".', found=name, expected=GRAMMAR, mend=proposal(name))
        weight_bits, activation_bits = (int(bits) for bits in name[1:].split("a"))
        return cls(name, weight_bits, activation_bits)

    @property
    def quantizes_activations(self) -> bool:
        """Whether activations have scales."""
        return self.activation_bits is not None and self.activation_bits < ACTIVATION_BITS[-1]

    @property
    def bit_operations_per_mac(self) -> float:
        """Weight bits times activation bits, the cost that the paper counts for one multiply-accumulate (PTQD, arXiv 2305.10657). Values in
        blocks count with their share of the scales.
        """
        weight = stored_bits(self._weight_width, self.form)
        return weight * stored_bits(self.activation_bits or self._weight_width, self.activation_form)

    @property
    def cost_key(self) -> tuple[float, int, str]:
        """Sort key for precisions by ascending bit operations; among equals, fewer weight bits come first."""
        return self.bit_operations_per_mac, self._weight_width, self.name

    @property
    def _weight_width(self) -> int:
        return self.weight_bits or FLOAT_WIDTHS[self.name]


def proposal(name: str) -> str | None:
    """Return a question that proposes the valid name closest to a misspelt one, or None if none is close.

    Closest in bits if it has the form of a precision, otherwise closest in spelling.
    """
    if bits := re.fullmatch(r"w(\d+)a(\d+)", name.strip().lower()):
        weight = min(WEIGHT_BITS, key=lambda known: abs(known - int(bits[1])))
        activation = min(ACTIVATION_BITS, key=lambda known: abs(known - int(bits[2])))
        return did_you_mean(f"w{weight}a{activation}", all_names())
    return did_you_mean(name, all_names(), least=0.5)


def all_names() -> tuple[str, ...]:
    """Every name of the grammar."""
    pairs = (f"w{weight}a{activation}" for weight in WEIGHT_BITS for activation in ACTIVATION_BITS)
    return (*pairs, *QUANTIZED_FLOATS, *FLOAT_WIDTHS)
