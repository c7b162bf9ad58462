"""The examples of `docs/diffusers.md`, run as they stand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers.pipelines.pipeline_utils
import pytest
import torch
from PIL import Image

from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler
from ptqd_export.plan import Plan

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.ptqd_export.diffusers.conftest import PlainModel

PAGE = Path(__file__).parents[3] / "docs" / "diffusers.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _no_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.pipelines.pipeline_utils.DiffusionPipeline, "progress_bar", lambda _self, iterable: iterable)


@pytest.fixture
def installed(plain: PlainModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `model` and `bundle`."""
    shutil.copytree(plain.folder, tmp_path / "model")
    shutil.copytree(plain.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("local"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_bundle_of_these_tests_is_that_of_the_page(installed: Path) -> None:
    (plan,) = blocks("json")
    built = json.loads((installed / "bundle" / "plan.json").read_text())
    shown = Plan.model_validate(json.loads(plan)).model_dump(mode="json")
    for section in ("model", "sampler", "precisions", "output"):
        assert built[section] == shown[section]


def test_two_lines_put_a_bundle_into_a_pipeline(installed: Path) -> None:
    names = run(blocks("python")[0])
    assert isinstance(names["pipe"].unet, PtqdDenoiser)
    assert isinstance(names["pipe"].scheduler, PtqdScheduler)
    assert len(names["images"]) == 4
    with Image.open(installed / "sample.png") as image:
        assert image.size == (8, 8)
        assert image.getextrema() != ((0, 0),) * 3


@pytest.mark.usefixtures("installed")
def test_parts_are_given_to_from_pretrained() -> None:
    names = run(blocks("python")[1])
    assert names["pipe"].unet is names["denoiser"]
    assert names["pipe"].scheduler is names["scheduler"]
    assert len(names["images"]) == 1


def test_a_loop_of_ones_own(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny.folder, tmp_path / "build" / "digits")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run(blocks("python")[2])
    assert names["both"].tolist() == [0, 1, 2, 3, 3, 3]
    assert names["x"].shape == (3, 1, 8, 8)
    assert names["scheduler"].step_index == len(names["scheduler"].timesteps)


def test_every_example_is_run() -> None:
    assert len(blocks("python")) == 3
    assert len(blocks("json")) == 1
