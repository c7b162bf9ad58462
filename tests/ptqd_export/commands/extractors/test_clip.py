"""CLIP scores against transformers' own computation on pixels that Pillow prepared, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.scorers.clip_scorer import ClipScorer
from engines.arrays import Float32
from engines.errors import UsageError
from ptqd_export.cli import main
from tests.ptqd_export.models.text import tiny_text

PROMPTS = ("a photo of the cat", "the red dog", "", "word " * 100)


def export(model: Path, output: Path) -> Result:
    return CliRunner().invoke(main, ["extractor", "clip", "--model", str(model), "-o", str(output)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text.write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def folder(model: Path) -> Path:
    done = export(model, model.parent / "out")
    assert done.exit_code == 0, done.stderr
    return model.parent / "out"


def pictures(count: int, channels: int, height: int, width: int) -> NDArray[np.uint8]:
    """Blocks of four by four pixels, so that resizing leaves contrast."""
    small = np.random.default_rng(0).integers(0, 256, (count, channels, height // 4, width // 4), dtype=np.uint8)
    return small.repeat(4, axis=2).repeat(4, axis=3)


def prepared(picture: NDArray[np.uint8]) -> Float32:
    """What transformers' preprocessor does."""
    side = tiny_text.CLIP_SIDE
    image = Image.fromarray(np.moveaxis(np.broadcast_to(picture, (3, *picture.shape[1:])), 0, -1).copy())
    scale = side / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side))) / 255
    return np.moveaxis((pixels - tiny_text.CLIP_MEAN) / tiny_text.CLIP_DEVIATION, -1, 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(4, 3, 64, 64), (4, 3, 32, 32), (4, 3, 20, 20), (4, 1, 48, 80)])
def test_scores_are_those_of_transformers(model: Path, folder: Path, shape: tuple[int, int, int, int]) -> None:
    """Of every picture with every prompt."""
    levels, rows = pictures(*shape).repeat(len(PROMPTS), axis=0), np.tile(np.arange(len(PROMPTS)), shape[0])
    found = ClipScorer(folder, PROMPTS)((levels / 127.5 - 1).astype(np.float32), None, rows)
    network: Any = transformers.CLIPModel.from_pretrained(model)
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(model)
    ids = tokenizer([PROMPTS[row] for row in rows], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        out = network(input_ids=ids, pixel_values=torch.from_numpy(np.array([prepared(picture) for picture in levels])))
    cosines = (out.image_embeds * out.text_embeds).sum(dim=1)
    assert (cosines > 0.02).any()
    np.testing.assert_allclose(found, 100 * cosines.clamp(min=0), atol=0.1)


def test_the_image_tower_is_a_feature_extractor_too(folder: Path) -> None:
    extractor = Extractor(folder / "image.onnx", threads=1)
    assert (extractor.name, extractor.check((3, 24, 24), "the samples").features.shape) == ("clip-tiny", (1, 12))


def resample(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": 2}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "preprocessor": (resample, "error: This CLIP preprocessor is not supported.\n"),
    "weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "error: The model's weights cannot be read.\n"),
    "tokenizer": (lambda folder: (folder / "vocab.json").unlink(), "error: The model has no tokenizer.\n"),
    "configuration": (lambda folder: (folder / "config.json").unlink(), "error: The CLIP model has no configuration.\n"),
    "files": (lambda folder: (folder / "preprocessor_config.json").unlink(), "error: The CLIP model has no preprocessor.\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_folders_that_are_no_such_model_are_refused(model: Path, tmp_path: Path, damage: str) -> None:
    folder, (change, message) = tmp_path / "model", DAMAGES[damage]
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    done = export(folder, tmp_path / "out")
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_not_exported_is_an_error_of_usage(model: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)This is no CLIP model.*no image\.onnx, text\.onnx, tokenizer\.json"):
        ClipScorer(model, PROMPTS)
