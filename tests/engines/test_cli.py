"""`ptqd-run` as its users see it: files, messages, exit codes, and what it does not import."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from engines.chain.noise import NoiseSource
from tests.engines.ptqd_run import names, record, run, sample, sampled, states

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[2]
BUILD_TIME = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "scipy", "calib", "ptqd_export")
GRAPH = "graphs/onnxruntime/w4a8.onnx"


def fresh_interpreter(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys\n"
        "from engines.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)


def test_sampling_imports_nothing_of_build_time(tiny: TinyBundle, tmp_path: Path) -> None:
    done = fresh_interpreter("sample", tiny.folder, "--num", 2, "--seed", 1, "--output", tmp_path / "out")
    imported = done.stderr.split()
    assert {"numpy", "onnxruntime", "PIL", "engines"} <= set(imported)
    assert [name for name in BUILD_TIME if name in imported] == []
    assert names(tmp_path / "out") == ["00000000.png", "00000001.png", "grid.png", "samples.json"]


@pytest.mark.parametrize("command", [[], ["sample"], ["bench"], ["evaluate"], ["compare"], ["reference"]])
def test_help_imports_no_library_but_the_command_lines(command: list[str]) -> None:
    done = fresh_interpreter(*command, "--help")
    assert len(done.stdout) > 100
    assert [name for name in ("numpy", "pydantic", "onnxruntime", "PIL", "rich") if name in done.stderr.split()] == []


def test_pictures_grid_and_record(tiny: TinyBundle, tmp_path: Path) -> None:
    result = sample(tiny, tmp_path / "out", "--first", 30, "--classes", "2,0", num=5)
    assert result.exit_code == 0
    pictures = [f"000000{n}.png" for n in range(30, 35)]
    assert names(tmp_path / "out") == [*pictures, "grid.png", "samples.json"]
    assert record(tmp_path / "out") == {
        "schema_version": 2,
        "bundle": hashlib.sha256((tiny.folder / "manifest.json").read_bytes()).hexdigest(),
        "bundle_schema_version": 6,
        "seed": 5,
        "first": 30,
        "num": 5,
        "schedule": "default",
        "precision": "auto",
        "precision_steps": {"w4a8": 2, "w8a8": 1, "fp32": 1},
        "correction": "on",
        "guidance": 1.5,
        "rows": [2, 0, 2, 0, 2],
        "prompts": None,
        "negative_prompt": None,
        "strength": None,
        "size": None,
        "images": None,
        "mask": None,
        "control_images": None,
        "loras": [],
        "runtime": "onnxruntime",
        "runtime_reason": "the bundle's target",
        "provider": "CPU",
        "versions": {name: version(name) for name in ("ptqd-export", "onnxruntime")},
        "files": pictures,
    }
    with Image.open(tmp_path / "out" / "00000032.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 3 * 96
    assert result.stdout.startswith("5 samples in ")
    assert result.stdout.endswith(f" per second), steps: 2 w4a8, 1 w8a8, 1 fp32; see {tmp_path / 'out'}\n")


def test_pictures_are_the_raw_states(tiny: TinyBundle, tmp_path: Path) -> None:
    raw = states(tiny, tmp_path / "npz")
    pictures = sampled(tiny, tmp_path / "png")
    for n, state in enumerate(raw):
        with Image.open(pictures / f"{n:08d}.png") as image:
            expected = 255 * np.clip((state[0].astype(np.float64) + 1) / 2, 0, 1)
            assert np.abs(np.asarray(image) - expected).max() <= 0.51


def test_archive_holds_states_numbers_and_rows(tiny: TinyBundle, tmp_path: Path) -> None:
    folder = sampled(tiny, tmp_path / "out", "--format", "npz", "--first", 7, "--classes", "all", "--batch-size", 4)
    assert names(folder) == ["samples.json", "samples.npz"]
    with np.load(folder / "samples.npz") as archive:
        assert set(archive.files) == {"samples", "rows", "indices"}
        assert archive["samples"].shape == (6, 1, 8, 8)
        assert archive["indices"].tolist() == [7, 8, 9, 10, 11, 12]
        assert archive["rows"].tolist() == record(folder)["rows"] == [1, 2, 0, 1, 2, 0]
    assert record(folder)["files"] == ["samples.npz"]


@pytest.mark.parametrize("options", [["--batch-size", 7], ["--batch-size", 1], ["--batch-size", 64, "--precision", "fp32"]])
def test_a_sample_depends_on_seed_number_and_class_alone(tiny: TinyBundle, tmp_path: Path, options: list[object]) -> None:
    fixed = ["--precision", "fp32"]
    whole = states(tiny, tmp_path / "whole", *fixed, num=20)
    np.testing.assert_allclose(states(tiny, tmp_path / "other", *fixed, *options, num=20), whole, rtol=0, atol=1e-4)
    tail = states(tiny, tmp_path / "tail", *fixed, *options, "--first", 13, num=7)
    np.testing.assert_allclose(tail, whole[13:], rtol=0, atol=1e-4)
    assert np.abs(whole[1:] - whole[:-1]).max(axis=(1, 2, 3)).min() > 0.1


def test_rows_left_out_are_drawn_from_seed_and_number(tiny: TinyBundle, tmp_path: Path) -> None:
    folder = sampled(tiny, tmp_path / "out", "--first", 3, num=9)
    drawn = NoiseSource(5, (1, 8, 8)).row(np.arange(3, 12), 3).tolist()
    assert record(folder)["rows"] == drawn
    assert set(drawn) == {0, 1, 2}


def test_same_command_writes_the_same_bytes(tiny: TinyBundle, tmp_path: Path) -> None:
    once, again = (sampled(tiny, tmp_path / name) for name in ("once", "again"))
    assert names(once) == names(again)
    for name in names(once):
        assert (once / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    "options", [["--precision", "fp32"], ["--correction", "off"], ["--guidance", 3, "--accept-guidance"], ["--classes", "0,0,1"]]
)
def test_every_option_reaches_the_samples(tiny: TinyBundle, tmp_path: Path, options: list[object]) -> None:
    plain, other = states(tiny, tmp_path / "plain", "--classes", "0"), states(tiny, tmp_path / "other", "--classes", "0", *options)
    assert np.abs(plain - other).max() > 1e-2


def test_record_tells_what_was_asked_for(tiny: TinyBundle, tmp_path: Path) -> None:
    options = ["--precision", "w8a8", "--correction", "off", "--guidance", 3, "--accept-guidance"]
    written = record(sampled(tiny, tmp_path / "out", *options))
    assert written["precision_steps"] == {"w8a8": 4}
    assert (written["precision"], written["correction"], written["guidance"]) == ("w8a8", "off", 3.0)


def test_unconditional_model_has_no_rows_and_draws_in_color(tiny_unconditional: TinyBundle, tmp_path: Path) -> None:
    folder = sampled(tiny_unconditional, tmp_path / "png")
    assert record(folder)["rows"] is None
    with Image.open(folder / "00000000.png") as image:
        assert image.mode == "RGB"
    with np.load(sampled(tiny_unconditional, tmp_path / "npz", "--format", "npz") / "samples.npz") as archive:
        assert set(archive.files) == {"samples", "indices"}


def test_latents_are_sampled_into_an_archive(tiny_latent: TinyBundle, tmp_path: Path) -> None:
    assert states(tiny_latent, tmp_path / "out").shape == (6, 4, 8, 8)


def test_grid_shows_the_first_64(tiny: TinyBundle, tmp_path: Path) -> None:
    sizes = []
    for num in (64, 70):
        with Image.open(sampled(tiny, tmp_path / str(num), num=num) / "grid.png") as grid:
            sizes.append(grid.size)
    assert sizes[0] == sizes[1]
    assert len(names(tmp_path / "70")) == 72


def test_a_run_that_fails_leaves_no_record_of_an_earlier_one(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sampled(tiny, tmp_path / "out", num=2)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("engines.apps.sample.sample_command.PngOutput.add", fail)
    assert sample(tiny, folder, "--overwrite", num=2).exit_code == 130
    assert names(folder) == []


def test_samples_of_another_run_are_an_error_before_anything_is_opened_or_written(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sampled(tiny, tmp_path / "out", num=2)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(
        "engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", lambda *_, **__: pytest.fail("an engine was started")
    )
    result = sample(tiny, folder, num=3)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: The output folder holds the samples of another run.\n"
        f"  found:    00000000.png and 3 more files in {folder}, from a finished run\n"
        "  expected: a folder without samples\n"
        "  mend:     choose another --output, or pass --overwrite to remove these samples and start over\n"
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_overwrite_removes_the_samples_and_no_other_file(tiny: TinyBundle, tmp_path: Path) -> None:
    folder = sampled(tiny, tmp_path / "out", "--first", 30, num=5)
    (folder / "samples.json").unlink()  # as an interrupted run leaves it
    (folder / ".00000035.png.x1.part").write_text("a killed run's")
    (folder / ".shards-0123456789abcdef").mkdir()
    own = ["1.png", "00000001.png.txt", "notes.txt", ".x.part"]
    for name in own:
        (folder / name).write_text("mine")
    assert "from an interrupted run, because there is no samples.json" in sample(tiny, folder, num=2).stderr
    sampled(tiny, folder, "--overwrite", "--format", "npz", num=2)
    assert names(folder) == sorted([*own, "samples.json", "samples.npz"])
    sampled(tiny, folder, "--overwrite", num=2)
    assert names(folder) == sorted([*own, "00000000.png", "00000001.png", "grid.png", "samples.json"])
    assert record(folder)["num"] == 2


def test_bench_prints_a_table_and_writes_its_figures(tiny: TinyBundle, tmp_path: Path) -> None:
    result = run("bench", tiny.folder, "--batch-size", 3, "--rounds", 2, "--steps", 3, "--json", tmp_path / "new" / "bench.json")
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("fp32", "w8a8", "w4a8", "auto", "against fp32", "1.00x", "outside engines", "3 of 4 steps", "median of 2 rounds"):
        assert words in result.stdout
    figures = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert (figures["schema_version"], figures["batch_size"], figures["steps"], figures["rounds"]) == (1, 3, 3, 2)
    assert list(figures["chains"]) == ["fp32", "w8a8", "w4a8", "auto"]
