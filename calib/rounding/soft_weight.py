"""A weight while it is learned: what a block computes with, and the integers that it becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from calib.quantizers.quantizers import WeightQuantizer


class SoftWeight(nn.Module, ABC):
    """A weight whose parameters are learned.

    Attributes:
        rate: Adam's initial learning rate.
        decays: whether the rate decays to 0.
    """

    rate: ClassVar[float]
    decays: ClassVar[bool]

    @abstractmethod
    def forward(self) -> Tensor:
        """The weight that the block computes with, float32 [channels, ...]."""

    @abstractmethod
    def unrounded(self) -> Tensor:
        """The weight that is rounded, float32 [channels, ...]."""

    @abstractmethod
    def integers(self) -> Tensor:
        """The rounded weight, [channels, ...] on the CPU, in the type that its quantizer stores."""


Soften: TypeAlias = Callable[[Tensor, WeightQuantizer], SoftWeight]
"""Makes a weight soft."""


@dataclass(frozen=True)
class Phase:
    """One kind of learning that a block goes through.

    Attributes:
        name: what is learned.
        soften: makes the block's weights soft.
    """

    name: str
    soften: Soften
