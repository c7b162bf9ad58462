"""`ptqd-run evaluate --ray`: the figures of one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines.cli import main
from engines.cluster.shards import Shards

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, samples=(0.5 * np.random.default_rng(0).normal(size=(120, 1, 8, 8))).astype(np.float32))
    return path


def evaluate(bundle: Path, reference: Path, extractor: Path, json_file: Path, *options: str) -> Result:
    where = ["evaluate", bundle, "--num", 60, "--reference", reference, "--features", extractor, "--json", json_file]
    how = ["--seed", "3", "--seeds", "2", "--precision", "w4a8", "--batch-size", "25"]
    return CliRunner().invoke(main, [*map(str, where), *how, *options])


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_figures_are_those_of_one_machine(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert evaluate(tiny.folder, images, extractor_file, here).exit_code == 0

    wrote: list[str] = []
    write = Shards.write

    interrupted: list[str] = []

    def counted(shards: Shards, unit: str, arrays: Any) -> None:
        if len(wrote) == 2 and not interrupted:
            interrupted.append(unit)
            raise KeyboardInterrupt
        wrote.append(unit)
        write(shards, unit, arrays)

    monkeypatch.setattr(Shards, "write", counted)
    on_ray = ["--ray", "--ray-cpus", "1", "--shards", str(tmp_path / "shards")]
    assert evaluate(tiny.folder, images, extractor_file, there, *on_ray).exit_code == 130
    done = evaluate(tiny.folder, images, extractor_file, there, *on_ray)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(wrote) == len(set(wrote)) == 6
    assert list((tmp_path / "shards").iterdir()) == []
    assert len(json.loads(here.read_text())["figures"]) == 10
    assert there.read_text() == here.read_text()
