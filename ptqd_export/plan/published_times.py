"""Times of a step that others have published: what the policy `budget` counts for a GPU that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PublishedTime:
    """Time of a step as a share of float16's.

    Attributes:
        share: the share.
        source: where it comes from.
    """

    share: float
    source: str


_SDXL = "NVIDIA, Stable Diffusion XL on TensorRT 9.3:"
_FP8 = 1 / (1.14 * 1.45) ** 0.5

PUBLISHED: Mapping[str, PublishedTime] = MappingProxyType(
    {
        "fp16": PublishedTime(1.0, "the unit"),
        "w8a8": PublishedTime(1 / (1.20 * 1.43) ** 0.5, f"{_SDXL} 1.20 to 1.43 times as fast as float16, geometric mean"),
        "fp8": PublishedTime(_FP8, f"{_SDXL} 1.14 to 1.45 times as fast as float16, geometric mean"),
        "nvfp4": PublishedTime(_FP8 * 4.21 / 7.73, "fp8, and FLUX.1 dev in ComfyUI on a GeForce RTX 50: 7.73 against 4.21 steps a second"),
    }
)
"""Published times by precision. They mix models, runtimes and GPUs, so they order precisions, and no more."""
