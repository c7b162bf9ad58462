"""Turn a chain's final states into images. All code that draws or scores samples uses this module."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from engines.arrays import Float32
from engines.backends.base import Backend, Engine
from engines.backends.choice import Runtime, engine_settings, open_backend, runtime_name
from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.flavour import FlavourName
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.bundle.bundle import Bundle
from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord, TileRecord
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


def open_decoder(bundle: Bundle, runtime: Runtime, threads: int | None = None) -> Decoder:
    """Open the decoder of a bundle on the runtime that its networks use.

    Raises:
        MissingBackendError: the runtime or its device is missing.
        PtqdError: the graph is damaged, or the runtime refuses it.
    """
    return _open(bundle, bundle.manifest.model.decoder, runtime, threads)


def open_preview(bundle: Bundle, runtime: Runtime, threads: int | None = None) -> Decoder | None:
    """Open the small decoder for previews; None if the bundle has none. Raises what `open_decoder` raises."""
    record = bundle.manifest.model.preview
    return None if record is None else _open(bundle, record, runtime, threads)


def _open(bundle: Bundle, record: DecoderRecord | None, runtime: Runtime, threads: int | None) -> Decoder:
    if record is None:
        return Decoder()
    return Decoder(open_beside(bundle, record, record.batch, runtime, threads), record.batch, record.image_shape, record.tile)


def check_decoder(bundle: Bundle, runtime: Runtime) -> None:
    """Check that the files of a bundle's decoder are whole and, on TensorRT, that its engine was built for this machine.

    Raises what `open_decoder` raises.
    """
    record = bundle.manifest.model.decoder
    if record is None:
        return
    graph, name = bundle.graph(record.file, record.weights), runtime_name(bundle, runtime)
    if name == "tensorrt" or name == "tensorrt-rtx":
        _tensorrt_beside(bundle, name, record.batch).find(graph)


def open_beside(bundle: Bundle, record: DecoderRecord | EncoderRecord, batch: int, runtime: Runtime, threads: int | None = None) -> Engine:
    """Open a graph of a bundle beside the networks, on their runtime, for at most `batch` rows. Raises what `open_decoder` raises."""
    name = runtime_name(bundle, runtime)
    if name == "tensorrt" or name == "tensorrt-rtx":
        backend: Backend = _tensorrt_beside(bundle, name, batch)
    else:
        backend = open_backend(bundle, runtime, threads)
    return backend.open(bundle.graph(record.file, record.weights), batch)


def _tensorrt_beside(bundle: Bundle, flavour: FlavourName, batch: int) -> TensorRtBackend:
    return TensorRtBackend(decoder_settings(engine_settings(bundle, flavour), batch), bundle.folder)


def decoder_settings(settings: EngineSettings, batch: int) -> EngineSettings:
    """Return the settings of the decoder's engine: those of the networks, but with the decoder's own batch size."""
    return replace(settings, profile=BatchProfile(1, batch, batch))
