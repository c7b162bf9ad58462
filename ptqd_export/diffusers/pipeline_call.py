"""How a pipeline calls the network that a bundle replaces: its form of the state, and its scale of the timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.bundle.manifest import ModelRecord
from engines.errors import UsageError
from ptqd_export.diffusers.network_config import network_config, transformer_family
from ptqd_export.models.diffusers_models.transformers.fixed_rotary import grid_positions
from ptqd_export.models.diffusers_models.transformers.frame import pack, unpack
from ptqd_export.models.diffusers_models.transformers.transformer_family import AS_HERE, PipelineGuidance, TimestepMap

UNCHANGED = TimestepMap()

POSITIONS = "img_ids"
GRIDS = "img_shapes"
OF_THE_SIZE = frozenset({POSITIONS, GRIDS, "txt_ids", "resolution", "aspect_ratio"})
"""Arguments of transformers that follow from the size of the samples: the engines have them as constants."""

AT_THE_SIZE = "call the pipeline with the height and width of the bundle's images, or build a bundle of that size"


@dataclass(frozen=True)
class PipelineCall:
    """How a pipeline calls its network, and what its scheduler gets.

    Attributes:
        sample_shape: shape [C, *sides] of the latents of one sample.
        patch: side of a token in latents where the pipeline packs latents into tokens [B, tokens, C * patch ** axes]; None where it gives
            latents [B, C, *sides].
        timestep: maps the sampler's timestep to the one that the pipeline gives.
        listed: whether the network gets and returns a list of [C, 1, *sides] instead; the scheduler gets latents.
        negated: whether the pipeline negates what the network returns, before the scheduler gets it.
        axes_behind: axes of the positions of tokens, behind those of the grid.
        guidance: how the pipeline is asked for classifier-free guidance.
        guidance_patch: side of the patches in which its guidance keeps the norm of the conditional output; None if it is linear.
    """

    sample_shape: tuple[int, ...]
    patch: int | None = None
    timestep: TimestepMap = UNCHANGED
    listed: bool = False
    negated: bool = False
    axes_behind: int = 0
    guidance: PipelineGuidance = AS_HERE
    guidance_patch: int | None = None

    @classmethod
    def of(cls, model: ModelRecord) -> PipelineCall:
        """Return how the pipelines of a bundle's model call its network."""
        family = transformer_family(model)
        if family is None:
            return cls(model.sample_shape)
        config = network_config(model)
        return cls(
            model.sample_shape,
            patch=family.side(config) if family.layout == "tokens" else None,
            timestep=family.timestep(config),
            listed=family.listed,
            negated=family.negated,
            axes_behind=family.axes_behind,
            guidance=family.pipeline_guidance,
            guidance_patch=model.guidance_patch,
        )

    @property
    def given_shape(self) -> tuple[int, ...]:
        """Shape of a sample as the pipeline's scheduler gets it, without the batch."""
        channels, *sides = self.sample_shape
        if self.patch is None:
            return self.sample_shape
        return math.prod(self._grid), channels * self.patch ** len(sides)

    @property
    def _grid(self) -> tuple[int, ...]:
        """Sides of a sample in tokens."""
        return tuple(side // (self.patch or 1) for side in self.sample_shape[1:])

    def states(self, given: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the states that a network is called with in the form that the scheduler gets."""
        return torch.stack(list(given)).squeeze(2) if self.listed else torch.as_tensor(given)

    def returned(self, out: Tensor) -> Tensor | list[Tensor]:
        """Return outputs in the scheduler's form as the network returns them."""
        signed = -out if self.negated else out
        return list(signed.unsqueeze(2).unbind()) if self.listed else signed

    def latents(self, given: Tensor) -> Tensor:
        """Return the pipeline's state as latents [B, C, *sides]."""
        return given if self.patch is None else unpack(given, self.sample_shape[1:], self.patch)

    def given(self, latents: Tensor) -> Tensor:
        """Return latents [B, C, *sides] as the pipeline has its states."""
        return latents if self.patch is None else pack(latents, self.patch)

    def check(self, given: Tensor, positions: Tensor | None = None, grids: Sequence[Any] | None = None) -> None:
        """Check that the samples of a call have the bundle's size.

        Args:
            given: the pipeline's states.
            positions: positions [tokens, axes] or [B, tokens, axes] of its tokens, which tell height from width; None if the pipeline
                gives none.
            grids: for each sample, frames, rows and columns in tokens, in a list of their own; None if the pipeline gives none.

        Raises:
            UsageError: they have another size.
        """
        if tuple(given.shape[1:]) != self.given_shape:
            raise UsageError(
                "The engines take samples of another shape.",
                found=f"samples of shape {list(given.shape[1:])}",
                expected=str(list(self.given_shape)),
                mend=AT_THE_SIZE,
            )
        if grids is not None:
            self._check_grids(grids)
        if positions is not None:
            self._check_positions(positions)

    def _check_grids(self, grids: Sequence[Any]) -> None:
        own = (1, *self._grid)
        for grid in grids:
            if [tuple(image) for image in grid] != [own]:
                raise _at_other_places(f"{grid} frames, rows and columns of tokens", f"{[own]}")

    def _check_positions(self, positions: Tensor) -> None:
        places = np.pad(grid_positions(self._grid, positions.shape[-1] - self.axes_behind), ((0, 0), (0, self.axes_behind)))
        own = torch.from_numpy(places).to(positions.dtype)
        for each in positions.to("cpu").reshape(-1, *positions.shape[-2:]):
            if each.shape != own.shape or not torch.equal(each, own):
                raise _at_other_places(f"positions up to {_last(each)}", f"positions up to {_last(own)}, row by row")


def _at_other_places(found: str, expected: str) -> UsageError:
    return UsageError(
        "The tokens of the pipeline lie at other places than those of the engines.", found=found, expected=expected, mend=AT_THE_SIZE
    )


def _last(positions: Tensor) -> list[Any]:
    found: list[Any] = positions.amax(dim=0).tolist()
    return found
