"""Stage `encoder`: traces the encoder of a latent model to a graph, and verifies it against torch."""

from __future__ import annotations

from pathlib import Path

from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import check_module_parity, lower, trace_module
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.reporter import Reporter

ENCODER = "encoder.onnx"
RECORD = "encoder.json"


def make_encoder(context: BuildContext, decoder: DecoderRecord, folder: Path, _reporter: Reporter) -> None:
    """Write `encoder.onnx`, and `encoder.json` with its record for the manifest.

    The graph's input `sample` has images [batch, channels, height, width], or tiles of them as large as the decoder's; its output `out` has
    clean states. The batch is free.
    """
    encoder, state, image_shape = context.model.encoder, context.model.sample_shape, decoder.image_shape
    assert encoder is not None
    if decoder.tile is not None:
        image_shape = image_shape[0], *decoder.tile.pixels(state[1:], image_shape[1:])
    graph = trace_module(encoder, {STATE: encoder.example_images(2, image_shape)})
    lower(graph, context.placement)
    path = folder / ENCODER
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    check_module_parity(encoder, {STATE: encoder.example_images(1, image_shape)}, path)
    (folder / RECORD).write_text(EncoderRecord(file=ENCODER, tile=decoder.tile).model_dump_json())


def encoder_record(folder: Path | None) -> EncoderRecord | None:
    """Read the record that `make_encoder` wrote; None if there is no encoder."""
    return None if folder is None else EncoderRecord.model_validate_json((folder / RECORD).read_text())
