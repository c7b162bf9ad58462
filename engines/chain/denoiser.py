"""The internal calling convention of all networks: `out = denoiser(x, timestep, rows)`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64


class Denoiser(Protocol):
    """A full-precision or quantized network on any backend.

    Takes the states `x` float32 [batch, channels, ...], one training timestep for the whole batch, and each sample's row of the
    conditioning table [batch] (ignored by unconditional models). Returns the raw outputs float32 [branches, batch, channels, ...]:
    one branch, or two (conditional, unconditional) under classifier-free guidance. A network under `NormGuidance` returns one.
    """

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32: ...


class Denoisers(Protocol):
    """Maps the name of a precision to its denoiser: an engine bank or a dict."""

    def __getitem__(self, precision: str) -> Denoiser: ...


def is_guided(guidance: float) -> bool:
    """Return whether a guidance scale needs the unconditional branch. As in diffusers, a scale of 1 or less means "conditional only"."""
    return guidance > 1


def effective_guidance(guidance: float) -> float:
    """Return the scale w that a guidance scale amounts to: 1, "conditional only", for every scale up to 1."""
    return guidance if is_guided(guidance) else 1.0


def guide(branches: Float32, guidance: float) -> Float32:
    """Classifier-free guidance, `u + w (c - u)` (Ho and Salimans 2022): [branches, batch, ...] to [batch, ...]."""
    if len(branches) == 1:
        return np.asarray(branches[0])
    conditional, unconditional = branches
    return np.asarray(unconditional + np.float32(guidance) * (conditional - unconditional))
