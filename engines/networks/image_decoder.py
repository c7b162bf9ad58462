"""Turns a chain's final states into images. All code that draws or scores samples uses this class."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float32
from engines.backends.base import Engine
from engines.bundle.first_stage_record import TileRecord
from engines.chain.finite import NotFiniteError, is_finite
from engines.errors import PtqdError
from engines.networks.engine_denoiser import STATE
from engines.networks.tiles import decode_in_tiles


class Decoder:
    """The decoder of a latent model, or the identity for models whose states are images.

    Args:
        engine: engine of the decoder's graph, or None for the identity.
        batch: maximum number of images to decode at a time: memory goes to the images, not the states.
        shape: shape of an image, or None if unknown.
        tile: part of a state that the engine takes at a time; None takes whole states.
    """

    def __init__(
        self, engine: Engine | None = None, batch: int = 1, shape: tuple[int, ...] | None = None, tile: TileRecord | None = None
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._shape = shape
        self._tile = tile

    def __call__(self, states: Float32) -> Float32:
        """Return the images [N, 1 or 3, H, W] of states [N, C, ...]; values may lie slightly outside [-1, 1]."""
        if self._engine is None:
            return states
        cuts = range(0, len(states), self._batch)
        images = np.concatenate([self._decoded(self._engine, states[begin : begin + self._batch]) for begin in cuts])
        if self._shape not in (None, images.shape[1:]):
            raise PtqdError("The decoder's images have the wrong shape.", found=list(images.shape[1:]), expected=list(self._shape or ()))
        if not is_finite(images):
            raise NotFiniteError("The decoder's images are not finite.", found=f"NaN or infinity from {self._engine.label}")
        return images

    def _decoded(self, engine: Engine, states: Float32) -> Float32:
        if self._tile is None:
            return engine.run({STATE: states})
        return decode_in_tiles(lambda tiles: engine.run({STATE: np.ascontiguousarray(tiles)}), states, self._tile)
