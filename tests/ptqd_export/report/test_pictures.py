"""The pictures: which chains they are of, and how they are kept."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from engines.apps.pictures.images import to_pixels
from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.chain.noise import NoiseSource
from engines.chain.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.errors import BundleError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.report.pictures import MOST, PICTURES, SEED, draw, sheet_of, stored_pictures

if TYPE_CHECKING:
    from pathlib import Path

    from engines.arrays import Float32, Int64
    from tests.ptqd_export.conftest import Array
    from tests.ptqd_export.report.conftest import Reported

SHAPE = (1, 4, 6)


class Constant:
    """A network that answers the same everywhere."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 - the names are the protocol's
        return np.full_like(x, self.value)[None]


def _schedule() -> Schedule:
    """One step `x + out` without noise; the correction of the quantized network takes its output away."""
    none = Correction(gain=(1.0,), offset=(0.0,), state_gain=(0.0,), sigma_corrected=0.0, residual_variance=0.0, unabsorbed_variance=0.0)
    step = Step(
        step=0, timestep=500.0, precision="w8a8", x_coeff=1.0, out_coeff=1.0, prediction_coeffs=(1.0, 0.0), history_coeffs=(),
        input_scale=1.0, sigma=0.0, clip=None, corrections={"fp32": none, "w8a8": none.model_copy(update={"gain": (0.0,)})},
    )  # fmt: skip
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=1, eta=0.0, guidance=1.0), correction=CorrectionRecord(mode="signed", variance="none"),
        policy="fixed", init_sigma=1.0, steps=(step,),
    )  # fmt: skip


def test_rows_are_full_precision_uncorrected_and_corrected_of_the_same_noise() -> None:
    steps: list[None] = []
    kinds = draw(_schedule(), {"fp32": Constant(0.0), "w8a8": Constant(0.5)}, "fp32", SHAPE, None, on_step=lambda: steps.append(None))
    start = NoiseSource(SEED, SHAPE).start(np.arange(MOST))
    rows = [np.concatenate(list(to_pixels(states)), axis=1) for states in (start, start + np.float32(0.5), start)]
    np.testing.assert_array_equal(np.asarray(sheet_of(kinds)), np.concatenate(rows))
    assert len(steps) == 3


def test_colours_stay() -> None:
    sheet = sheet_of(draw(_schedule(), {"fp32": Constant(0.0), "w8a8": Constant(0.5)}, "fp32", (3, 4, 6), None))
    assert (sheet.mode, sheet.size) == ("RGB", (MOST * 6, 3 * 4))


def test_each_is_given_with_its_class(reported: Reported) -> None:
    pictures = stored_pictures(reported.bundle)
    with Image.open(reported.folder / PICTURES) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 8, MOST * 8)
    rows = NoiseSource(SEED, (1, 8, 8)).row(np.arange(MOST), 3)
    assert [(picture.number, picture.row) for picture in pictures] == list(enumerate(rows.tolist()))
    for picture in pictures:
        assert len(picture.images) == 3
        for kind, uri in enumerate(picture.images):
            expected = pixels[8 * kind : 8 * kind + 8, 8 * picture.number : 8 * picture.number + 8]
            np.testing.assert_array_equal(_decoded(uri), expected)


@pytest.mark.parametrize(
    ("kind", "chain"),
    [(0, ChainChoice(precision="fp32", correction="off")), (1, ChainChoice(correction="off")), (2, ChainChoice())],
    ids=["full precision", "uncorrected", "corrected"],
)
def test_they_are_those_of_the_sample_command(reported: Reported, tmp_path: Path, kind: int, chain: ChainChoice) -> None:
    sample_bundle(SampleRequest(reported.folder, tmp_path, MOST, SEED, chain=chain))
    for picture in stored_pictures(reported.bundle):
        with Image.open(tmp_path / f"{picture.number:08d}.png") as sampled:
            apart = np.abs(np.asarray(sampled).astype(int) - _decoded(picture.images[kind]))
        assert apart.max() <= 1, "of 255: but for rounding the same"


def _decoded(uri: str) -> Array:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        return np.asarray(image)


def test_states_that_are_no_pictures_are_not_drawn(reported_latent: Reported) -> None:
    assert stored_pictures(reported_latent.bundle) == []


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a\x01\x00\x01\x00", None])
def test_damaged_pictures_are_an_error(own_reported: Reported, content: bytes | None) -> None:
    if content is None:
        Image.new("L", (MOST * 8 + 1, 24)).save(own_reported.folder / PICTURES)
    else:
        (own_reported.folder / PICTURES).write_bytes(content)
    own_reported.register(PICTURES)
    with pytest.raises(BundleError, match="pictures of the report"):
        stored_pictures(own_reported.bundle)
