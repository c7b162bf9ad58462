"""Stage `decoder`: traces the decoder of a latent model to a graph, and verifies it against torch."""

from __future__ import annotations

import math
from pathlib import Path

from engines.bundle.manifest import DecoderRecord
from engines.networks.engine_denoiser import STATE
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import check_module_parity, lower, trace_decoder
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.reporter import Reporter

DECODER = "decoder.onnx"
RECORD = "decoder.json"

PIXELS = 512 * 512
"""Most pixels to decode at a time. The last layers' activations limit the batch: they have the image's size and hundreds of channels."""

MOST_IMAGES = 64


def make_decoder(context: BuildContext, folder: Path, _reporter: Reporter) -> None:
    """Write `decoder.onnx`, and `decoder.json` with its record for the manifest."""
    decoder, shape = context.model.decoder, context.model.sample_shape
    assert decoder is not None
    graph = trace_decoder(decoder, shape)
    lower(graph, context.placement)
    path = folder / DECODER
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    image_shape = tuple(int(size) for size in graph.graph.outputs[0].shape[1:])  # type: ignore[index, arg-type]  # sizes are known
    check_module_parity(decoder, {STATE: decoder.example_states(1, shape)}, path)
    record = DecoderRecord(file=DECODER, image_shape=image_shape, batch=images_at_a_time(image_shape))
    (folder / RECORD).write_text(record.model_dump_json())


def images_at_a_time(image_shape: tuple[int, ...]) -> int:
    """Return how many images have at most as many pixels as one of 512 x 512, but at least 1 and at most `MOST_IMAGES`."""
    return min(MOST_IMAGES, max(1, PIXELS // math.prod(image_shape[1:])))


def decoder_record(folder: Path | None) -> DecoderRecord | None:
    """Read the record that `make_decoder` wrote."""
    return None if folder is None else DecoderRecord.model_validate_json((folder / RECORD).read_text())
