"""Turn images into clean states of a chain."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float32
from engines.backends.base import Engine
from engines.backends.choice import Runtime
from engines.bundle.bundle import Bundle
from engines.bundle.first_stage_record import TileRecord
from engines.chain.finite import NotFiniteError, is_finite
from engines.errors import PtqdError, UsageError
from engines.networks.decoder import open_beside
from engines.networks.engine_denoiser import STATE
from engines.networks.tiles import encode_in_tiles

IMAGES_AT_ONCE = 1
"""Images that the encoder takes at a time: a sample's state then depends on its own image alone, to the last bit."""


class Encoder:
    """The encoder of a latent model, or the identity for models whose states are images.

    Args:
        engine: engine of the encoder's graph, or None for the identity.
        shape: shape of a state; None if unknown.
        tile: part of a state whose image the engine takes at a time; None takes whole images. Needs the shape.
    """

    def __init__(self, engine: Engine | None = None, shape: tuple[int, ...] | None = None, tile: TileRecord | None = None) -> None:
        self._engine = engine
        self._shape = shape
        self._tile = tile

    def __call__(self, images: Float32) -> Float32:
        """Return the clean states [N, C, ...] of images [N, 1 or 3, H, W] in [-1, 1]."""
        if self._engine is None:
            return images
        states = np.concatenate([self._encoded(self._engine, images[n : n + 1]) for n in range(len(images))])
        if self._shape not in (None, states.shape[1:]):
            raise PtqdError("The encoder's states have the wrong shape.", found=list(states.shape[1:]), expected=list(self._shape or ()))
        if not is_finite(states):
            raise NotFiniteError("The encoder's states are not finite.", found=f"NaN or infinity from {self._engine.label}")
        return states

    def _encoded(self, engine: Engine, image: Float32) -> Float32:
        if self._tile is None or self._shape is None:
            return engine.run({STATE: image})
        factor = image.shape[-1] // self._shape[-1]
        return encode_in_tiles(lambda tiles: engine.run({STATE: np.ascontiguousarray(tiles)}), image, self._tile, factor)


def check_encodable(bundle: Bundle) -> None:
    """Check that images can become states of a bundle.

    Raises:
        UsageError: the model is latent, and the bundle has no encoder.
    """
    model = bundle.manifest.model
    if model.decoder is not None and model.encoder is None:
        raise UsageError(
            "The bundle cannot encode images: its model is latent, and it has no encoder.",
            found="no encoder in the manifest",
            expected="encoder.onnx",
            mend="set model.encoder to true in the plan, and build the bundle again",
        )


def lacks_mask(found: str) -> UsageError:
    """Return the error for an inpainting network that is not given what to repaint."""
    return UsageError(
        "An inpainting network needs a picture and a mask.",
        found=found,
        expected="an image and a mask: `ptqd-run sample --image --mask`, or image and mask in Python",
    )


def check_unpainted(bundle: Bundle) -> None:
    """Raises UsageError if prompts alone are not enough for a bundle."""
    if bundle.manifest.model.repaints:
        raise lacks_mask("prompts alone")


def open_encoder(bundle: Bundle, runtime: Runtime, threads: int | None = None) -> Encoder:
    """Open the encoder of a bundle on the runtime that its networks use.

    Raises:
        UsageError: see `check_encodable`.
        MissingBackendError: the runtime or its device is missing.
        PtqdError: the graph is damaged, or the runtime refuses it.
    """
    check_encodable(bundle)
    record = bundle.manifest.model.encoder
    if record is None:
        return Encoder()
    return Encoder(open_beside(bundle, record, IMAGES_AT_ONCE, runtime, threads), bundle.manifest.model.sample_shape, record.tile)
