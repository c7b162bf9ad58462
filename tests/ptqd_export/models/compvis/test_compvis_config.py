"""The YAML is data: what is supported is understood, anything else is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.errors import PtqdError, UsageError
from ptqd_export.models.compvis.compvis_config import KlConfig, VqConfig, read_config
from tests.ptqd_export.models.compvis.published import LAYOUT, config, write_yaml


@pytest.mark.parametrize("name", LAYOUT)
def test_published_configurations_are_understood(name: str, tmp_path: Path) -> None:
    found = read_config(write_yaml(config(name), tmp_path / "model.yaml"))
    assert (found.classes is not None) == (name == "cin256-v2")
    assert isinstance(found.first_stage_config, KlConfig if name == "lsun-churches" else VqConfig)
    assert found.use_ema == (name != "cin256-v2")


def test_numbers_may_be_written_as_the_original_reader_takes_them(tmp_path: Path) -> None:
    """`1e-4` is a string in YAML 1.1 and a number in the reader that the original uses."""
    described = config("ffhq")
    described["model"]["params"]["linear_start"] = "15e-4"
    assert read_config(write_yaml(described, tmp_path / "model.yaml")).linear_start == 0.0015


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_file_may_be_saved_by_any_editor(tmp_path: Path, encoding: str) -> None:
    path = write_yaml(config("ffhq"), tmp_path / "model.yaml")
    expected = read_config(path)
    path.write_text(path.read_text(), encoding=encoding)
    assert read_config(path) == expected


Change = Callable[[dict[str, Any]], Any]

REFUSED: dict[str, Change] = {
    "unet_config.params.dims": lambda p: p["unet_config"]["params"].update(dims=3),
    "unet_config.params.strange": lambda p: p["unet_config"]["params"].update(strange=1),
    "num_heads or num_head_channels": lambda p: p["unet_config"]["params"].update(num_heads=8),
    "unet_config.target": lambda p: p["unet_config"].update(target="ldm.modules.diffusionmodules.openaimodel.EncoderUNetModel"),
    "first_stage_config": lambda p: p["first_stage_config"].update(target="ldm.models.autoencoder.IdentityFirstStage"),
    "ddconfig.attn_type": lambda p: p["first_stage_config"]["params"]["ddconfig"].update(attn_type="linear"),
    "parameterization": lambda p: p.update(parameterization="v"),
    "beta_schedule": lambda p: p.update(beta_schedule="sqrt"),
    "cosine_s": lambda p: p.update(cosine_s=0.01),
    "cond_stage_config": lambda p: p.update(cond_stage_config={"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {}}),
    "equal to the first stage's embed_dim": lambda p: p.update(channels=4),
    "context_dim": lambda p: p["unet_config"]["params"].update(use_spatial_transformer=True, context_dim=512),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_supported_is_named(named: str, tmp_path: Path) -> None:
    described = config("lsun-bedrooms")
    REFUSED[named](described["model"]["params"])
    with pytest.raises(UsageError, match="not supported") as error:
        read_config(write_yaml(described, tmp_path / "model.yaml"))
    assert named in str(error.value)


def test_another_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("model:\n  target: ldm.models.diffusion.ddpm.LatentUpscaleDiffusion\n  params: {}\n")
    with pytest.raises(UsageError, match=r"LatentUpscaleDiffusion"):
        read_config(tmp_path / "model.yaml")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir [{marker}]", "model: [", "\x00"])
def test_a_yaml_that_would_run_code_or_is_none_is_refused(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model.yaml").write_text(text.format(marker=marker))
    with pytest.raises(PtqdError, match="cannot be read"):
        read_config(tmp_path / "model.yaml")
    assert not marker.exists()
