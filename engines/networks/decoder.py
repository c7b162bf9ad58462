"""Opens the decoder of a bundle."""

from __future__ import annotations

from dataclasses import replace

from engines.backends.base import Backend, Engine
from engines.backends.choice import Runtime, engine_settings, open_backend, runtime_name
from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.flavour import FlavourName
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.bundle.bundle import Bundle
from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord
from engines.networks.image_decoder import Decoder


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
