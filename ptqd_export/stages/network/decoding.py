"""Stages `decoder` and `preview`: trace a decoder of a latent model to a graph, and verify it against torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.rules.placement import HighPrecision
from engines.apps.evaluate.metrics.paired import image_errors, pooled_psnr
from engines.arrays import Float32
from engines.bundle.first_stage_record import DecoderRecord, TileRecord
from engines.errors import UsageError
from engines.networks.engine_denoiser import STATE
from engines.untrusted.external_data import graph_files
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.trace import check_module_parity, lower, trace_decoder
from ptqd_export.models.base import DecoderModule
from ptqd_export.models.decoder_tile import check_encoder_tile, decoder_tile
from ptqd_export.models.module_checks import image_shape
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.decoder_files import DECODER, PREVIEW, RECORD
from ptqd_export.stages.reporter import Reporter

PIXELS = 512 * 512
"""Most pixels to decode at a time. The last layers' activations limit the batch: they have the image's size and hundreds of channels."""

MOST_IMAGES = 64

COMPARED = 4
"""States whose images decide whether a decoder computes in half precision."""

LARGEST: Mapping[HighPrecision, float] = {"fp16": 65504.0, "bf16": 3.3e38}
"""Largest numbers of the types."""

MOST_SHARE = 0.25
"""Most of this number that the values of a layer may take for these states: others may give larger ones."""

LEAST_PSNR = 45.0
"""Least pooled PSNR in dB of these images to those in float32. An error of one level of 256, root mean square, is 48 dB."""


def make_decoder(context: BuildContext, folder: Path, _reporter: Reporter) -> None:
    """Write `decoder.onnx`, and `decoder.json` with its record for the manifest."""
    assert context.model.decoder is not None
    _write(context, context.model.decoder, DECODER, tile_of(context), folder)


def make_preview(context: BuildContext, folder: Path, _reporter: Reporter) -> None:
    """Write `preview.onnx`, the decoder of previews, and `decoder.json` with its record for the manifest."""
    assert context.model.preview is not None
    _write(context, context.model.preview.module, PREVIEW, preview_tile(context), folder)


def _write(context: BuildContext, decoder: DecoderModule, name: str, tile: TileRecord | None, folder: Path) -> None:
    shape = context.model.sample_shape
    images = image_shape(decoder, shape)
    taken = shape if tile is None else (shape[0], *tile.sides)
    graph = trace_decoder(decoder, taken)
    lower(graph, context.placement)
    path = folder / name
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    check_module_parity(decoder, {STATE: decoder.example_states(1, taken)}, path)
    record = DecoderRecord(file=name, image_shape=images, batch=images_at_a_time(image_shape(decoder, taken)), tile=tile)
    states = decoder.example_states(COMPARED, taken)
    if context.high_precision != "fp32" and _largest(decoder, states) < MOST_SHARE * LARGEST[context.high_precision]:
        record = _narrowed(context, path, states.numpy(), record)
    (folder / RECORD).write_text(record.model_dump_json())


def _largest(decoder: DecoderModule, states: Tensor) -> float:
    """Return the largest magnitude that a layer of the decoder returns. ONNX Runtime computes float16 in float32 on the CPU, so it does not
    show what overflows.
    """
    found = [0.0]

    def see(_module: nn.Module, _taken: object, out: object) -> None:
        if isinstance(out, Tensor):
            found[0] = max(found[0], float(out.abs().max()))

    hooks = [module.register_forward_hook(see) for module in decoder.modules()]
    try:
        with torch.inference_mode():
            for state in states:
                decoder(state[np.newaxis])
    finally:
        for hook in hooks:
            hook.remove()
    return found[0]


def _narrowed(context: BuildContext, path: Path, states: Float32, record: DecoderRecord) -> DecoderRecord:
    """Let a decoder compute in the target's float type, unless its images of some states depart too far from those in float32."""
    exact = context.backend.open(path, 1)
    images = [exact.run({STATE: state[np.newaxis]}) for state in states]
    del exact
    graph = ir.load(path)
    ir.passes.Sequential(ToHalfPrecision(context.high_precision), common.RemoveUnusedNodesPass())(graph)
    with TemporaryDirectory(dir=path.parent) as folder:
        narrow = Path(folder) / path.name
        save_graph(graph, narrow)
        check_graph(context.placement, narrow, ())
        engine = context.backend.open(narrow, 1)
        errors = [image_errors(engine.run({STATE: state[np.newaxis]}), image) for state, image in zip(states, images, strict=True)]
        psnr = pooled_psnr(np.concatenate(errors))
        if not psnr >= LEAST_PSNR:
            return record
        del graph, engine
        for file in graph_files(path):
            file.unlink()
        for file in graph_files(narrow):
            file.replace(path.with_name(file.name))
    return record.model_copy(update={"computes_in": context.high_precision, "psnr_db": round(psnr, 1)})


def tile_of(context: BuildContext) -> TileRecord | None:
    """Return the tiles that the plan's decoder and encoder take at a size; None for whole images.

    Raises:
        UsageError: the plan names a tile, and the model has no decoder; or decoder or encoder cannot take the tiles.
    """
    decoder, encoder, shape = context.model.decoder, context.model.encoder, context.model.sample_shape
    wanted = context.plan.model.decoder_tile
    if decoder is not None:
        tile = decoder_tile(decoder, shape, wanted)
        if tile is not None and encoder is not None:
            check_encoder_tile(encoder, tile, shape, image_shape(decoder, shape))
        return tile
    if isinstance(wanted, int):
        raise UsageError(
            "The model has no decoder to take tiles.",
            found=f"model.decoder_tile = {wanted}",
            expected="a latent model",
            mend="leave model.decoder_tile out of the plan",
        )
    return None


def preview_tile(context: BuildContext) -> TileRecord | None:
    """Return the tiles of the decoder of previews at a size, which follow the same setting. Raises what `tile_of` raises."""
    preview = context.model.preview
    return None if preview is None else decoder_tile(preview.module, context.model.sample_shape, context.plan.model.decoder_tile)


def images_at_a_time(image_shape: tuple[int, ...]) -> int:
    """Return how many images have at most as many pixels as one of 512 x 512, but at least 1 and at most `MOST_IMAGES`."""
    return min(MOST_IMAGES, max(1, PIXELS // math.prod(image_shape[1:])))
