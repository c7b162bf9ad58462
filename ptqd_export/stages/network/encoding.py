"""Stage `encoder`: traces the encoder of a latent model to a graph, and verifies it against torch."""

from __future__ import annotations

from pathlib import Path

from engines.bundle.manifest import EncoderRecord
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import check_module_parity, lower, trace_module
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.reporter import Reporter

ENCODER = "encoder.onnx"


def make_encoder(context: BuildContext, image_shape: tuple[int, ...], folder: Path, _reporter: Reporter) -> None:
    """Write `encoder.onnx`: input `sample`, images [batch, *image_shape]; output `out`, clean states; free batch."""
    encoder = context.model.encoder
    assert encoder is not None
    graph = trace_module(encoder, {STATE: encoder.example_images(2, image_shape)})
    lower(graph, context.placement)
    path = folder / ENCODER
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    check_module_parity(encoder, {STATE: encoder.example_images(1, image_shape)}, path)


def encoder_record(folder: Path | None) -> EncoderRecord | None:
    """Return the manifest's record of an encoder; None if there is none."""
    return None if folder is None else EncoderRecord(file=ENCODER)
