"""Precisions by name: `w4a8` means 4-bit weights with 8-bit activations, `w4a16` 4-bit weights with float activations, `fp8` 8-bit floats
(E4M3) for both, `fp32` all float.
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

FLOAT8 = "fp8"

Form: TypeAlias = Literal["integer", "e4m3"]
"""How quantized values are stored: integers, or floats with 4 exponent and 3 mantissa bits (Micikevicius et al., arXiv 2209.05433)."""

PATTERN = r"^(w[2-8]a([4-8]|16)|fp8|fp16|fp32)$"
"""The grammar as a regular expression, for the JSON Schema of the plan."""

GRAMMAR = "w2 to w8 followed by a4 to a8 or a16 (float activations), such as w4a8; or fp8, fp16 or fp32"
"""The grammar in words, for error messages."""


@dataclass(frozen=True)
class Precision:
    """A pair of bit widths, both None for float precisions. 16 activation bits mean float activations, so only the weights are quantized.
    `fp8` counts as quantized: its values have scales, like integers.
    """

    name: str
    weight_bits: int | None
    activation_bits: int | None
    form: Form = "integer"

    @classmethod
    def parse(cls, name: str) -> Precision:
        """Return the precision of that name. Raises UsageError if the name is not in the grammar."""
        if name in FLOAT_WIDTHS:
            return cls(name, None, None)
        if name == FLOAT8:
            return cls(name, 8, 8, "e4m3")
        if not re.fullmatch(PATTERN, name):
            raise UsageError(f'Unknown precision "{name}".', found=name, expected=GRAMMAR, mend=proposal(name))
        weight_bits, activation_bits = (int(bits) for bits in name[1:].split("a"))
        return cls(name, weight_bits, activation_bits)

    @property
    def quantizes_activations(self) -> bool:
        """Whether activations have scales."""
        return self.activation_bits is not None and self.activation_bits < ACTIVATION_BITS[-1]

    @property
    def bit_operations_per_mac(self) -> int:
        """Weight bits times activation bits, the cost that the paper counts for one multiply-accumulate (PTQD, arXiv 2305.10657)."""
        return self._weight_width * (self.activation_bits or self._weight_width)

    @property
    def cost_key(self) -> tuple[int, int, str]:
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
    return (*pairs, FLOAT8, *FLOAT_WIDTHS)
