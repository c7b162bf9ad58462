"""Deep features that a chain keeps from one step and reuses at later ones.

Neighbouring steps compute nearly the same deep features. A step that reuses those of an earlier step runs only what lies before and behind
a cut of the network, and so is one more approximate network: its noise is split, corrected and absorbed like quantization noise.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from engines.arrays import Float32, Int64

MARK = "+"
"""Stands between the precision and the cut in the name of a network that is cut."""


def cut_name(precision: str, cut: str) -> str:
    """Return the name of a network at a cut, such as `w4a8+skip_3`: the key of its corrections, its statistics and its engines."""
    return f"{precision}{MARK}{cut}"


def precision_and_cut(name: str) -> tuple[str, str | None]:
    """Return the precision and the cut of a network's name; None for a network that computes everything."""
    precision, _, cut = name.partition(MARK)
    return precision, cut or None


def extrapolated(kept: Float32, earlier: Float32 | None, weight: float) -> Float32:
    """Return the features on the line through those of two steps; without an earlier step, those of the later one.

    Args:
        kept: features of the last step that computed them.
        earlier: features of the step that computed them before; None if there was none.
        weight: how far the line goes on behind `kept`, as a multiple of the distance between the two.
    """
    return kept if earlier is None or weight == 0 else kept + np.float32(weight) * (kept - earlier)


@runtime_checkable
class CutDenoiser(Protocol):
    """A network that is cut. As a `Denoiser` it computes everything. Features are float32 [batch, branches, ...]."""

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        """Return the outputs; see `Denoiser`."""

    def keep(self, x: Float32, timestep: float, rows: Int64) -> tuple[Float32, Float32]:
        """Compute everything; return the outputs and the features at the cut."""

    def reuse(self, x: Float32, timestep: float, rows: Int64, kept: Float32) -> Float32:
        """Compute the outputs from the state and from features of an earlier step, which stay unchanged."""
