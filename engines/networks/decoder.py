"""From the states that a chain ends with to the images that people look at: everything that draws or scores samples comes through here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.arrays import Float32
from engines.backends.base import Backend, Engine
from engines.backends.choice import Runtime, engine_settings, open_backend
from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.bundle.bundle import Bundle
from engines.chain.finite import NotFiniteError, is_finite
from engines.errors import PtqdError
from engines.networks.engine_denoiser import STATE


class Decoder:
    """The first stage of a latent model; of other models, whose states are images, the identity.

    Args:
        engine: of the decoder's graph, or None.
        batch: most images that it decodes at a time: they, not the states, take the memory.
        shape: of an image; None where it is not known.
    """

    def __init__(self, engine: Engine | None = None, batch: int = 1, shape: tuple[int, ...] | None = None) -> None:
        self._engine = engine
        self._batch = batch
        self._shape = shape

    def __call__(self, states: Float32) -> Float32:
        """Images [N, 1 or 3, H, W] of states [N, C, ...]; values may leave [-1, 1] a little."""
        if self._engine is None:
            return states
        cuts = range(0, len(states), self._batch)
        images = np.concatenate([self._engine.run({STATE: states[begin : begin + self._batch]}) for begin in cuts])
        if self._shape not in (None, images.shape[1:]):
            raise PtqdError("The decoder's images are of another shape.", found=list(images.shape[1:]), expected=list(self._shape or ()))
        if not is_finite(images):
            raise NotFiniteError("The decoder's images are not finite.", found=f"NaN or infinity from {self._engine.label}")
        return images


def open_decoder(bundle: Bundle, runtime: Runtime, threads: int | None = None) -> Decoder:
    """The decoder of a bundle on the runtime of its networks.

    Raises:
        MissingBackendError: the runtime or its device is missing.
        PtqdError: the graph is damaged, or the runtime refuses it.
    """
    record = bundle.manifest.model.decoder
    if record is None:
        return Decoder()
    backend = _backend(bundle, runtime, record.batch, threads)
    return Decoder(backend.open(bundle.graph(record.file), record.batch), record.batch, record.image_shape)


def _backend(bundle: Bundle, runtime: Runtime, batch: int, threads: int | None) -> Backend:
    name = bundle.manifest.target.name if runtime == "target" else runtime
    if name == "tensorrt" or name == "tensorrt-rtx":
        return TensorRtBackend(decoder_settings(engine_settings(bundle, name), batch), bundle.folder)
    return open_backend(bundle, runtime, threads)


def decoder_settings(settings: EngineSettings, batch: int) -> EngineSettings:
    """How an engine of the decoder is built: for its own batch, not the networks'."""
    return replace(settings, profile=BatchProfile(1, batch, batch))
