"""`ptqd-run evaluate --shards`: a run that was interrupted ends with the figures of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from engines.chain.sampling import Chain
from engines.cli import main
from engines.cluster.shards import Shards

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

BATCHES = 30
"""Of two samples each, for each of two seeds."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, samples=(0.5 * np.random.default_rng(0).normal(size=(120, 1, 8, 8))).astype(np.float32))
    return path


def evaluate(bundle: Path, reference: Path, extractor: Path, json_file: Path, *options: str, num: int = 2 * BATCHES) -> Result:
    where = ["evaluate", bundle, "--num", num, "--reference", reference, "--features", extractor, "--json", json_file]
    how = ["--seeds", "2", "--precision", "w4a8", "--batch-size", f"{num // BATCHES}"]
    return CliRunner().invoke(main, [*map(str, where), *how, *options])


def test_an_interrupted_run_resumes_and_ends_with_the_same_figures(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the second seed: the first is not sampled again, and no more of the second than since its sums were kept last."""
    whole, resumed, shards = tmp_path / "whole.json", tmp_path / "resumed.json", tmp_path / "shards"
    assert evaluate(tiny.folder, images, extractor_file, whole).exit_code == 0
    sampled: list[int] = []
    sample = Chain.sample

    def counted(chain: Chain, noise: Any, samples: Any, rows: Any = None, *rest: Any) -> Any:
        if len(sampled) == 2 * (BATCHES + 9):
            sampled.append(-1)
            raise KeyboardInterrupt
        sampled.append(int(samples[0]))
        return sample(chain, noise, samples, rows, *rest)

    monkeypatch.setattr(Chain, "sample", counted)
    stopped = evaluate(tiny.folder, images, extractor_file, resumed, "--shards", str(shards))
    assert stopped.exit_code == 130
    assert "the same command continues from there" in stopped.stderr
    done = evaluate(tiny.folder, images, extractor_file, resumed, "--shards", str(shards))
    assert (done.exit_code, done.stderr) == (0, "")
    again = sampled[sampled.index(-1) + 1 :]
    assert 2 * (BATCHES - 9) <= len(again) <= 2 * (BATCHES - 9 + 1)
    assert list(shards.iterdir()) == []
    assert len(json.loads(whole.read_text())["figures"]) == 11
    assert resumed.read_text() == whole.read_text()


def test_a_file_is_no_folder_for_unfinished_work(tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = evaluate(tiny.folder, images, extractor_file, tmp_path / "figures.json", "--shards", str(tmp_path / "file"))
    assert result.exit_code == 2
    assert "The output folder cannot be written." in result.stderr
    assert f"{tmp_path / 'file'}: " in result.stderr


def test_what_is_kept_does_not_grow_with_the_samples(
    tiny: TinyBundle, images: Path, extractor_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for the features of precision and recall, of which at most `POINTS_LIMIT` are kept, and one error for each pair."""
    sizes: dict[int, list[int]] = {}
    write = Shards.write
    for num in (2 * BATCHES, 6 * BATCHES):
        kept = sizes[num] = list[int]()

        def measured(shards: Shards, unit: str, arrays: Any, kept: list[int] = kept) -> None:
            kept.append(sum(array.nbytes for name, array in arrays.items() if not name.endswith(("points.kept", "image_errors"))))
            write(shards, unit, arrays)

        monkeypatch.setattr(Shards, "write", measured)
        shards = ["--shards", str(tmp_path / "shards")]
        assert evaluate(tiny.folder, images, extractor_file, tmp_path / "figures.json", *shards, num=num).exit_code == 0
    assert sizes[2 * BATCHES] == sizes[6 * BATCHES]
    assert len(sizes[2 * BATCHES]) == 2 * BATCHES // 2
