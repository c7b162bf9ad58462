"""What scorers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engines.arrays import Float32, Int64


class SampleScorer(Protocol):
    """Gives every sample a value; the figure is their mean.

    Attributes:
        figure: name of the figure.
        extractor: name of the network.
        paired: whether the figure compares samples with those of full precision.
    """

    figure: str
    extractor: str
    paired: bool

    def check(self, shape: Sequence[int]) -> None:
        """Check that the network takes images [C, H, W].

        Raises:
            UsageError: it does not.
        """
        ...

    def __call__(self, images: Float32, full_precision: Float32 | None, rows: Int64, /) -> Float32:
        """Return the values [n].

        Args:
            images: [n, C, H, W] samples as the sampler returns them.
            full_precision: the same samples at full precision; None only if the scorer is not paired.
            rows: [n] conditioning row of each sample.

        Raises:
            PtqdError: the network failed.
        """
        ...
