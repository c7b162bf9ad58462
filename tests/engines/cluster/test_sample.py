"""`ptqd-run sample --ray`: the same files as without it, whatever becomes of the workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from engines.bundle.bundle import Bundle
from engines.cli import main
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.shards import Shards

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


def sample(bundle: Path, output: Path, *options: str, num: int = 10) -> Result:
    arguments = ["sample", str(bundle), "--num", str(num), "--seed", "5", "--first", "3", "--batch-size", "4", "--output", str(output)]
    return CliRunner().invoke(main, [*arguments, *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", ["png", pytest.param("npz", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray")
def test_files_are_byte_for_byte_those_of_one_machine(tiny: TinyBundle, tmp_path: Path, kind: str) -> None:
    for name, options in (("here", ()), ("there", ("--ray", "--ray-cpus", "1"))):
        done = sample(tiny.folder, tmp_path / name, "--format", kind, *options)
        assert (done.exit_code, done.stderr) == (0, "")
    expected = contents(tmp_path / "here")
    assert len(expected) == (12 if kind == "png" else 2)
    assert contents(tmp_path / "there") == expected


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_run_goes_on_with_the_shards_that_are_there(tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrote: list[str] = []
    write = Shards.write

    def counted(shards: Shards, unit: str, arrays: Any) -> None:
        if len(wrote) == 2:
            raise KeyboardInterrupt
        wrote.append(unit)
        write(shards, unit, arrays)

    monkeypatch.setattr(Shards, "write", counted)
    assert sample(tiny.folder, tmp_path / "there", "--ray").exit_code == 130
    assert len(list((tmp_path / "there").glob(".shards-*/*.npz"))) == 2
    wrote.clear()
    (tmp_path / "there" / "00000003.png").write_text("from this run, interrupted while it wrote pictures")
    assert sample(tiny.folder, tmp_path / "there", "--ray").exit_code == 0
    assert len(wrote) == 1
    assert sample(tiny.folder, tmp_path / "here").exit_code == 0
    assert contents(tmp_path / "there")["samples.npz"] == contents(tmp_path / "here")["samples.npz"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_shards_of_another_request_are_not_taken(tiny: TinyBundle, tmp_path: Path) -> None:
    Shards(tmp_path / "there", {"seed": 4}).write("00000003-00000006", {})
    assert sample(tiny.folder, tmp_path / "there", "--ray").exit_code == 2
    assert sample(tiny.folder, tmp_path / "there", "--ray", "--overwrite").exit_code == 0
    assert sample(tiny.folder, tmp_path / "here").exit_code == 0
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_damaged_bundle_is_told_as_on_one_machine(own_tiny: TinyBundle, tmp_path: Path) -> None:
    own_tiny.edit("graphs/onnxruntime/w8a8.onnx", lambda content: content[:-1])
    here = sample(own_tiny.folder, tmp_path / "here")
    there = sample(own_tiny.folder, tmp_path / "there", "--ray")
    assert here.exit_code == there.exit_code == 1
    assert there.stderr == here.stderr
    assert "was changed or damaged" in there.stderr


def test_files_travel_to_a_machine_that_lacks_them(ray: Any, own_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FolderCopy, "_is_everywhere", lambda *_: False)
    monkeypatch.setattr("engines.cluster.folder_copy.PIECE", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    names = ["manifest.json", *json.loads((own_tiny.folder / "manifest.json").read_text())["files"]]
    before = {name: (own_tiny.folder / name).read_bytes() for name in names}
    copy = FolderCopy.of(ray, own_tiny.folder, names)
    assert copy.local() == own_tiny.folder
    shutil.rmtree(own_tiny.folder)
    copied = copy.local()
    assert copied.is_relative_to(tmp_path / "elsewhere")
    assert contents(copied) == before
    (copied / "manifest.json").write_text("changed")
    assert contents(copy.local()) == before


def test_engines_of_any_machine_travel_too(ray: Any, own_tiny: TinyBundle) -> None:
    for place in ("any-machine", "this-machine"):
        for name in ("w8a8-1234.engine", "w8a8-1234.json", "w8a8-1234.engine.lock"):
            path = own_tiny.folder / "local" / place / "engines" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("content")
    copied = [name for name in FolderCopy.of_bundle(ray, Bundle.open(own_tiny.folder)).digests if name.startswith("local")]
    assert copied == [f"local/any-machine/engines/w8a8-1234.{suffix}" for suffix in ("engine", "json")]


def test_other_machines_are_asked_for_the_files(ray: Any, own_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.runtime_context.RuntimeContext.get_node_id", lambda _: "another machine than the cluster's one")
    copy = FolderCopy.of(ray, own_tiny.folder, ["manifest.json"])
    assert not copy.pieces
    (own_tiny.folder / "manifest.json").write_text("changed")
    assert not copy._is_everywhere(ray)


@pytest.mark.usefixtures("ray")
def test_chain_that_reuses_features_is_that_of_one_machine(cut: TinyBundle, tmp_path: Path) -> None:
    for name, options in (("here", ()), ("there", ("--ray", "--ray-cpus", "1"))):
        done = sample(cut.folder, tmp_path / name, "--format", "npz", *options)
        assert (done.exit_code, done.stderr) == (0, "")
    assert any("+skip_0" in name for name in json.loads((tmp_path / "here" / "samples.json").read_text())["precision_steps"])
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
