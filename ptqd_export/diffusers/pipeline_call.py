"""How a pipeline calls the network that a bundle replaces: its form of the state, and its scale of the timestep."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engines.bundle.manifest import ModelRecord
from engines.errors import UsageError
from ptqd_export.diffusers.network_config import network_config, transformer_family
from ptqd_export.models.diffusers_models.transformers.fixed_rotary import grid_positions
from ptqd_export.models.diffusers_models.transformers.frame import pack, unpack
from ptqd_export.models.diffusers_models.transformers.transformer_family import TimestepMap

UNCHANGED = TimestepMap()

AT_THE_SIZE = "call the pipeline with the height and width of the bundle's images, or build a bundle of that size"


@dataclass(frozen=True)
class PipelineCall:
    """How a pipeline calls its network.

    Attributes:
        sample_shape: shape [C, *sides] of the latents of one sample.
        patch: side of a token in latents where the pipeline packs latents into tokens [B, tokens, C * patch ** axes]; None where it gives
            latents [B, C, *sides].
        timestep: maps the sampler's timestep to the one that the pipeline gives.
    """

    sample_shape: tuple[int, ...]
    patch: int | None = None
    timestep: TimestepMap = UNCHANGED

    @classmethod
    def of(cls, model: ModelRecord) -> PipelineCall:
        """Return how the pipelines of a bundle's model call its network.

        Raises:
            UsageError: bundles of this model do not run in pipelines.
        """
        plain, family = cls(model.sample_shape), transformer_family(model)
        if family is None:
            return plain
        if not family.in_pipelines:
            raise UsageError(
                "Bundles of this network do not run in diffusers' pipelines.",
                found=f"a bundle of {model.family}",
                mend="sample it with ptqd-run sample, or with engines.open_bundle from Python",
            )
        config = network_config(model)
        patch = family.side(config) if family.layout == "tokens" else None
        return replace(plain, patch=patch, timestep=family.timestep(config))

    @property
    def given_shape(self) -> tuple[int, ...]:
        """Shape of a sample as the pipeline gives it, without the batch."""
        channels, *sides = self.sample_shape
        if self.patch is None:
            return self.sample_shape
        return math.prod(side // self.patch for side in sides), channels * self.patch ** len(sides)

    def latents(self, given: Tensor) -> Tensor:
        """Return the pipeline's state as latents [B, C, *sides]."""
        return given if self.patch is None else unpack(given, self.sample_shape[1:], self.patch)

    def given(self, latents: Tensor) -> Tensor:
        """Return latents [B, C, *sides] as the pipeline has its states."""
        return latents if self.patch is None else pack(latents, self.patch)

    def check(self, given: Tensor, positions: Tensor | None) -> None:
        """Check that the samples of a call have the bundle's size.

        Args:
            given: the pipeline's states.
            positions: positions [tokens, axes] of its tokens, which tell height from width; None if the pipeline gives none.

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
        if self.patch is None or positions is None:
            return
        own = self._positions(positions)
        if positions.shape != own.shape or not torch.equal(positions.to("cpu"), own):
            raise UsageError(
                "The tokens of the pipeline lie at other places than those of the engines.",
                found=f"positions up to {_last(positions)}",
                expected=f"positions up to {_last(own)}, row by row",
                mend=AT_THE_SIZE,
            )

    def _positions(self, like: Tensor) -> Tensor:
        assert self.patch is not None
        sides = [side // self.patch for side in self.sample_shape[1:]]
        return torch.from_numpy(grid_positions(sides, like.shape[-1])).to(like.dtype)


def _last(positions: Tensor) -> list[Any]:
    found: list[Any] = positions.amax(dim=0).tolist()
    return found
