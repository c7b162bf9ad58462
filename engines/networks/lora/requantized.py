"""Round a changed weight to integers, by the rules of the build that rounded the weight before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32

SMALLEST_SCALE = np.float32(1e-12)
BIAS_RANGE = 2.0**30
"""Most steps that a bias may be away from 0, so that an int32 sum has room for the products."""


@dataclass(frozen=True, eq=False)
class IntegerWeight:
    """A weight in integers.

    Attributes:
        integers: int8 [out, in, ...].
        scale: float32 [out, groups]; a group is a number of neighbouring inputs, all of them if there is one group.
    """

    integers: NDArray[np.int8]
    scale: Float32


def requantized(weight: Float32, scale: Float32, bits: int, changed: Float32, floor: Float32 | None = None) -> IntegerWeight:
    """Return a changed weight in integers, rounded to nearest, with new scales.

    A scale keeps its ratio to the one that holds the largest weight of its channel or group: a build that looks for the largest magnitude
    has the ratio 1, and one that looks for the least error found the ratio on activations, which a bundle does not hold.

    Args:
        weight: weight that was quantized, float32 [out, in, ...].
        scale: its scales, float32 [out, groups].
        bits: bits of the integers.
        changed: changed weight, [out, in, ...].
        floor: least scales [out], or None.
    """
    low, high = (-127 if bits == 8 else -(2 ** (bits - 1))), 2 ** (bits - 1) - 1
    before, after = (_largest_scales(one, scale.shape, high) for one in (weight, changed))
    new = np.where(after == before, scale, np.where(scale == before, after, scale / before * after))
    if floor is not None:
        new = np.maximum(new, floor[:, np.newaxis])
    groups = changed.reshape(len(changed), scale.shape[1], -1)
    integers = np.clip(np.rint(groups / new[:, :, np.newaxis]), low, high).astype(np.int8)
    return IntegerWeight(integers.reshape(changed.shape), new.astype(np.float32))


def _largest_scales(weight: Float32, shape: tuple[int, ...], high: int) -> Float32:
    largest = np.abs(weight.reshape(*shape, -1)).max(axis=2)
    return np.maximum(np.asarray(largest / np.float32(high), dtype=np.float32), SMALLEST_SCALE)


def least_scales(bias: NDArray[np.float64], input_scale: float) -> Float32:
    """Return the least scales [out] of a weight whose kernel takes an int32 bias [out] beside an input of this scale."""
    return np.asarray(np.abs(bias).astype(np.float32) / np.float32(input_scale * BIAS_RANGE), dtype=np.float32)


def bias_integers(bias: NDArray[np.float64], scale: Float32) -> NDArray[np.int32]:
    """Return a bias in units of its scales [out]."""
    most = 2.0**31 - 1
    return np.clip(np.rint(bias / scale.astype(np.float64)), -most, most).astype(np.int32)


def packed(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return 4-bit integers two in a byte, the first in the low half, as ONNX stores INT4."""
    nibbles = integers.reshape(-1).view(np.uint8) & np.uint8(0x0F)
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return np.asarray(nibbles[0::2] | (nibbles[1::2] << np.uint8(4)), dtype=np.uint8)
