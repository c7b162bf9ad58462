"""Plans of the benchmark's models, and its command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from ptqd_export.plan import load_plan
from tools.bench.__main__ import NAMES, main
from tools.bench.models import MODELS, USUAL


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_of_a_model_is_one(name: str, tmp_path: Path) -> None:
    model = replace(MODELS[name], save=None)
    (tmp_path / "conditions.npz").touch()
    plan = load_plan(model.write(tmp_path))
    assert plan.plan.sampler.name == "ddim"
    assert plan.plan.precisions == ("w8a8", "w7a8", "w4a8")
    assert plan.output_path == tmp_path / "bundle"
    assert plan.model_path == (model.source or tmp_path / "model")


def test_a_model_is_saved_once(tmp_path: Path) -> None:
    saved: list[Path] = []

    def save(folder: Path) -> None:
        saved.append(folder)
        folder.mkdir(parents=True)

    for _ in range(2):
        replace(MODELS["dit-s2"], save=save).write(tmp_path)
    assert saved == [tmp_path / "model"]


def test_the_command_line_knows_the_models() -> None:
    assert NAMES.choices == tuple(MODELS)
    assert set(USUAL) < set(MODELS)


def test_a_contestant_that_does_not_exist_is_told() -> None:
    done = CliRunner().invoke(main, ["run", "digits", "--only", "fp32,w9a9"])
    assert done.exit_code == 2
    assert "w9a9" in done.output
