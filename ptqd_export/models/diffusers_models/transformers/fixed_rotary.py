"""Rotary embeddings (Su et al. 2021, arXiv 2104.09864) at the positions of a model's own tokens, computed when the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.arrays import Float64

Turns: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines by which the entries of a head are turned."""

LONGEST_TEXT = 2048
"""Tokens of text for which there are positions; pipelines cut prompts to 512, or to 1024 for Qwen-Image."""


class FixedRotary(nn.Module):
    """Stands in for a transformer's `pos_embed`, which computes in float64 from the positions that it is given.

    Returns cosines and sines float32 [tokens, dim] for tokens of text, all at the origin, and the tokens of the state behind them. Of the
    positions it is given, only their number matters. The graph then has constants where it had float64 arithmetic, for which TensorRT has
    no kernels.

    Args:
        positions: [tokens, axes] positions of the state's tokens.
        dims: width of each axis in the head; an even number.
        theta: base of the wave lengths.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, positions: Float64, dims: Sequence[int], theta: float) -> None:
        super().__init__()
        cosine, sine = turns_at(positions, dims, theta)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        own, dim = self.cosine.shape
        text = len(positions) - own
        ones = torch.ones(text, dim, device=positions.device)
        return torch.cat([ones, self.cosine.to(positions.device)]), torch.cat([ones - 1, self.sine.to(positions.device)])


class RotaryTables(nn.Module):
    """Returns cosines and sines float32 [..., dim] of tokens at whole positions int64 [..., axes], from tables.

    The graph has no float arithmetic on positions, of which float16 would leave little.

    Args:
        length: the positions along each axis are 0 to `length - 1`.
        dims: width of each axis in the head; an even number.
        theta: base of the wave lengths.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, length: int, dims: Sequence[int], theta: float) -> None:
        super().__init__()
        self._dims = tuple(dims)
        cosine, sine = turns_at(np.repeat(np.arange(length, dtype=np.float64)[:, None], len(dims), axis=1), dims, theta)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def forward(self, positions: Tensor) -> Turns:
        return self._entries(self.cosine, positions), self._entries(self.sine, positions)

    def _entries(self, table: Tensor, positions: Tensor) -> Tensor:
        parts = table.to(positions.device).split(self._dims, dim=1)
        return torch.cat([F.embedding(positions[..., axis], part) for axis, part in enumerate(parts)], dim=-1)


def turned(heads: Tensor, turns: Turns) -> Tensor:
    """Return queries or keys [B, S, heads, dim] with neighbours in a head turned together, by cosines and sines [B or 1, S, dim]."""
    cosine, sine = (each[:, :, None, :] for each in turns)
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    return heads * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine


def turns_at(positions: Float64, dims: Sequence[int], theta: float) -> Turns:
    """Return cosines and sines float32 [tokens, dim] at positions [tokens, axes], computed in float64."""
    angles = np.concatenate([_angles(positions[:, axis], dim, theta) for axis, dim in enumerate(dims)], axis=1)
    return torch.from_numpy(np.cos(angles)).float(), torch.from_numpy(np.sin(angles)).float()


def _angles(position: Float64, dim: int, theta: float) -> Float64:
    """Return the angles [tokens, dim] of an axis; neighbours in the head turn together."""
    frequency = theta ** (-np.arange(0, dim, 2) / dim)
    return np.repeat(np.outer(position, frequency), 2, axis=1)


def grid_positions(sides: Sequence[int], axes: int) -> Float64:
    """Return the positions [tokens, axes] of the tokens of a grid, row by row; the axes before those of the grid stay at 0."""
    grid = np.stack(np.meshgrid(*map(np.arange, sides), indexing="ij"), axis=-1).reshape(-1, len(sides))
    return np.pad(grid, ((0, 0), (axes - len(sides), 0))).astype(np.float64)
