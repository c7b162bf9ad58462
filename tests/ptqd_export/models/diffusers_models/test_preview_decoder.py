"""Decoders of previews that do not fit the model are refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.errors import UsageError
from ptqd_export.cli import main as export
from ptqd_export.models.load import load_model
from tests.ptqd_export.models.pipelines import plan_of
from tests.ptqd_export.models.text.tiny_text import write_preview


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("three", "latents of 3 channels\n  expected: 4 channels, as the denoiser has\n  mend: "),
        ("model/vae", "vae: AutoencoderKL\n  expected: AutoencoderTiny"),
        ("nowhere", "The folder that model.preview names is missing."),
        ("odd", "odd: ValueError: invalid literal for int() with base 10: 'four'"),
    ],
)
def test_another_decoder_of_previews_is_refused(sdxl: Path, tmp_path: Path, name: str, message: str) -> None:
    write_preview(tmp_path / "three", channels=3)
    config = shutil.copytree(tmp_path / "three", tmp_path / "odd") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_channels": "four"}))
    shutil.copytree(sdxl, tmp_path / "model")
    plan_of(tmp_path / "model", preview=name)
    done = CliRunner().invoke(export, ["build", "--plan", str(tmp_path / "plan.json")])
    assert (done.exit_code, (tmp_path / "bundle").exists()) == (2, False)
    assert message in done.output


def test_a_model_without_a_decoder_takes_no_previews(sdxl: Path, tmp_path: Path) -> None:
    write_preview(tmp_path / "preview")
    index = shutil.copytree(sdxl, tmp_path / "model", ignore=shutil.ignore_patterns("vae")) / "model_index.json"
    index.write_text(json.dumps({name: part for name, part in json.loads(index.read_text()).items() if name != "vae"}))
    with pytest.raises(UsageError, match=r"(?s)states of this model are not decoded.*leave model.preview out"):
        load_model(plan_of(tmp_path / "model", preview="preview"))
