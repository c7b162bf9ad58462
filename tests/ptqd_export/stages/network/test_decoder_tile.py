"""Decoders that a build makes for tiles, against the first stage in diffusers."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from engines.arrays import Float32
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord, TileRecord
from engines.errors import UsageError
from engines.networks.encoder import Encoder
from engines.networks.image_decoder import Decoder
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import trace_decoder
from ptqd_export.models.base import EncoderModule
from ptqd_export.models.decoder_tile import decoder_tile
from ptqd_export.models.diffusers_models.diffusers_decoder import KlDecoder
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.build_progress import ProgressTracker
from ptqd_export.stages.network.decoder_files import DECODER, decoder_record
from ptqd_export.stages.network.decoding import make_decoder
from ptqd_export.stages.network.encoding import ENCODER, encoder_record, make_encoder

ROOT = Path(__file__).parents[4]
LATENT, DIGITS = ROOT / "tools" / "latent" / "plan.json", ROOT / "tools" / "digits" / "plan.json"
SIDE, OVERLAP, FACTOR = 8, 2, 2


def _small(*, attention: bool = True) -> AutoencoderKL:
    """A first stage with two levels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=attention,
    ).eval()


def _tiled_in_diffusers(states: Float32) -> Float32:
    """The images that diffusers decodes in tiles of the same side and overlap."""
    stage = _small()
    stage.enable_tiling()
    stage.tile_latent_min_size, stage.tile_sample_min_size, stage.tile_overlap_factor = SIDE, FACTOR * SIDE, OVERLAP / SIDE
    with torch.no_grad():
        return np.asarray(stage.decode(torch.from_numpy(states)).sample.numpy())


def _where_four_overlap(height: int, width: int) -> np.ndarray:
    """Where four tiles overlap: diffusers blends rows that are blended already, and so not with the shares of a straight line."""
    starts = [np.zeros(side, dtype=bool) for side in (height, width)]
    for one, begin in itertools.product(starts, (6, 12)):
        one[FACTOR * begin : FACTOR * (begin + OVERLAP)] = True
    return np.asarray(starts[0][:, None] & starts[1][None])


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The decoder of `_small` on ONNX Runtime, whose graph takes tiles."""
    path = tmp_path_factory.mktemp("decoder") / DECODER
    save_graph(trace_decoder(KlDecoder(_small(), 1.0), (4, SIDE, SIDE)), path)
    return Decoder(OnnxRuntimeEngine(path), 2, tile=TileRecord(sides=(SIDE, SIDE), overlap=OVERLAP))


@pytest.mark.parametrize("shape", [(20, SIDE), (SIDE, 20), (20, 20)])
def test_images_are_those_of_diffusers_tiles(tiled: Decoder, shape: tuple[int, int]) -> None:
    """diffusers adds a tile of the last two latents, which the last tile here ends with: those rows and columns are left out."""
    states = np.random.default_rng(1).normal(size=(3, 4, *shape)).astype(np.float32)
    found, expected = tiled(states), _tiled_in_diffusers(states)
    assert found.shape == expected.shape
    height, width = (FACTOR * (side - OVERLAP) for side in shape)
    same = ~_where_four_overlap(height, width)
    np.testing.assert_allclose(found[..., :height, :width][..., same], expected[..., :height, :width][..., same], atol=1e-4)


def _context(plan: Path, tile: Any, folder: Path, *, encoder: bool = False) -> BuildContext:
    plan_file = load_plan(plan)
    section = plan_file.plan.model.model_copy(update={"decoder_tile": tile, "encoder": encoder})
    return BuildContext(PlanFile(plan_file.plan.model_copy(update={"model": section}), plan_file.folder, folder))


def test_encoders_take_the_tiles_of_the_decoder(tmp_path: Path) -> None:
    """Latents that one tile alone reaches are those of torch for that tile."""
    context = _context(LATENT, 24, tmp_path, encoder=True)
    tile, tracker = TileRecord(sides=(6, 6), overlap=1), ProgressTracker(lambda _: None)
    make_encoder(context, DecoderRecord(file=DECODER, image_shape=(3, 32, 32), batch=1, tile=tile), tmp_path, tracker)
    assert encoder_record(tmp_path) == EncoderRecord(file=ENCODER, tile=tile)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    states = Encoder(OnnxRuntimeEngine(tmp_path / ENCODER), (4, 8, 8), tile)(images.numpy())
    encoder = context.model.encoder
    assert encoder is not None
    with torch.no_grad():
        corner = encoder(images[:, :, 8:, :24]).numpy()
    np.testing.assert_allclose(states[:, :, 6:, :2], corner[:, :, 4:, :2], atol=1e-4)


def test_a_build_makes_a_graph_of_the_plans_tiles(tmp_path: Path) -> None:
    context = _context(LATENT, 24, tmp_path)
    check_build(context)
    make_decoder(context, tmp_path, ProgressTracker(lambda _: None))
    record = decoder_record(tmp_path)
    assert record == DecoderRecord(file=DECODER, image_shape=(3, 32, 32), batch=64, tile=TileRecord(sides=(6, 6), overlap=1))
    states = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = Decoder(OnnxRuntimeEngine(tmp_path / DECODER), record.batch, record.image_shape, record.tile)(states.numpy())
    decoder = context.model.decoder
    assert decoder is not None
    with torch.no_grad():
        corners = {(y, x): decoder(states[:, :, y : y + 6, x : x + 6]).numpy() for y in (0, 2) for x in (0, 2)}
    for (y, x), corner in corners.items():  # no other tile reaches these 8 x 8 pixels
        rows, columns = (slice(0, 8) if place == 0 else slice(24, 32) for place in (y, x))
        own_rows, own_columns = (slice(0, 8) if place == 0 else slice(16, 24) for place in (y, x))
        np.testing.assert_allclose(images[:, :, rows, columns], corner[:, :, own_rows, own_columns], atol=1e-4)


@pytest.mark.parametrize(
    ("latents", "wanted", "sides"),
    [
        ((512, 512), "auto", None),
        ((256, 1024), "auto", None),
        ((512, 513), "auto", (512, 512)),
        ((300, 1024), "auto", (300, 512)),
        ((2048, 2048), None, None),
        ((64, 64), 64, (32, 32)),
        ((64, 64), 128, None),
    ],
)
def test_large_images_are_decoded_in_tiles(latents: tuple[int, int], wanted: Any, sides: tuple[int, int] | None) -> None:
    tile = decoder_tile(KlDecoder(_small(), 1.0), (4, *latents), wanted)
    assert tile == (None if sides is None else TileRecord(sides=sides, overlap=min(sides) // 4))


@pytest.mark.parametrize(("wanted", "mend"), [(33, "use 32"), (2, "use 8"), (6, "use 8")])
def test_a_tile_is_a_whole_number_of_latents(wanted: int, mend: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s)no whole number of latents.*model\.decoder_tile = {wanted}, 2 pixels.*{mend}"):
        decoder_tile(KlDecoder(_small(), 1.0), (4, 64, 64), wanted)


def test_a_tile_needs_a_decoder_that_takes_parts(tmp_path: Path) -> None:
    class Fixed(KlDecoder):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return super().forward(states.reshape(-1, 4, 64, 64))

    with pytest.raises(UsageError, match=r"(?s)cannot decode an image in tiles.*decoder_tile to null"):
        decoder_tile(Fixed(_small(), 1.0), (4, 64, 64), 64)
    with pytest.raises(UsageError, match=r"(?s)has no decoder.*model\.decoder_tile = 16.*out of the plan"):
        check_build(_context(DIGITS, 16, tmp_path))


class _Whole(EncoderModule):
    """An encoder of images of one size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(-1, 3, 32, 32)[:, :, ::4, ::4]


class _Wider(EncoderModule):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), 4, 6, 7)


@pytest.mark.parametrize(("encoder", "found"), [(_Whole(), "RuntimeError"), (_Wider(), r"\[4, 6, 7\]")])
def test_an_encoder_that_cannot_take_the_tiles_is_refused_before_the_build(tmp_path: Path, encoder: EncoderModule, found: str) -> None:
    context = _context(LATENT, 24, tmp_path)
    context.__dict__["model"] = replace(context.model, encoder=encoder)
    with pytest.raises(UsageError, match=rf"(?s)encoder cannot encode an image in tiles.*{found} from a part \[3, 24, 24\].*tile to null"):
        check_build(context)
