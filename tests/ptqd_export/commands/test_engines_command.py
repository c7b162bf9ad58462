"""`ptqd-export engines` with the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engines.backends.cached_engine import CachedEngine
from engines.bundle.bundle import Bundle
from engines.errors import MissingBackendError, PtqdError, UsageError
from engines.networks.engine_bank import EngineBank
from ptqd_export.cli import main
from ptqd_export.commands.engines_command import build_engines, print_engines
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.stages.finish.keep_optimized import BuiltEngine
from tests.narrow_terminal import WIDTHS, check_whole, narrow

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
TARGET = {"name": "tensorrt-rtx", "high_precision": "fp32", "profile": {"min": 1, "opt": 2, "max": 4}, "workspace_gib": None}


@pytest.fixture
def bundle(own_tiny: TinyBundle) -> TinyBundle:
    """With graphs that TensorRT takes, as it takes any float graph."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["target"] = TARGET
        del manifest["precisions"]["w4a8"]

    own_tiny.edit_json("manifest.json", change)
    return own_tiny


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has: the engines of these random graphs have no statistics to be held against."""

    def absent(_: Any) -> None:
        raise MissingBackendError("There is no CUDA device.", found="0 devices")

    monkeypatch.setattr("engines.backends.tensorrt.device.cuda.Cuda.__init__", absent)


def test_every_precision_is_built_and_found_the_second_time(bundle: TinyBundle) -> None:
    done = CliRunner().invoke(main, ["engines", str(bundle.folder)])
    assert done.exit_code == 0, done.output
    assert "not checked against the statistics: There is no CUDA device. Run this again" in done.output
    built = build_engines(bundle.folder)
    assert [engine.name for engine in built] == ["fp32", "w8a8"]
    assert all(engine.engine.from_cache for engine in built)
    folder = bundle.folder / "local/any-machine/engines"
    assert sorted(engine.engine.path for engine in built) == sorted(folder.glob("*.engine"))
    for engine in built:
        assert engine.engine.path.name in done.output
        assert engine.engine.path.stat().st_size > 10_000


def test_every_group_of_steps_has_its_engine(bundle: TinyBundle) -> None:
    name = "graphs/onnxruntime/w8a8.group_1.onnx"
    shutil.copyfile(bundle.folder / "graphs/onnxruntime/fp32.onnx", bundle.folder / name)
    bundle.rehash(name)
    group = {"below": 312.5, "graph": name, "pieces": None}
    bundle.edit_json("manifest.json", lambda manifest: manifest["precisions"]["w8a8"].update(groups=[group]))
    built = build_engines(bundle.folder)
    assert [engine.name for engine in built] == ["fp32", "w8a8", "w8a8 below timestep 312.5"]
    assert [engine.precision for engine in built] == ["fp32", "w8a8", "w8a8"]
    assert len({engine.engine.path for engine in built}) == 3


def test_another_writer_of_the_bundle_is_named_and_nothing_is_built(bundle: TinyBundle) -> None:
    with writing_to(bundle.folder):
        done = CliRunner().invoke(main, ["engines", str(bundle.folder)])
    assert done.exit_code == 1
    assert f"Another process is writing to {bundle.folder}.\n  found:    process {os.getpid()} on " in done.stderr
    assert not list(bundle.folder.rglob("*.engine"))


def test_flavour_can_be_another_than_the_bundles(bundle: TinyBundle) -> None:
    done = CliRunner().invoke(main, ["engines", str(bundle.folder), "--target", "tensorrt"])
    assert done.exit_code == 3, done.output
    assert "pip install 'ptqd-export[gpu]'" in done.output


@pytest.mark.parametrize("width", WIDTHS)
def test_table_is_whole_in_a_narrow_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    narrow(monkeypatch, width)
    path = tmp_path / f"w8a8-{'0' * 64}.engine"
    path.write_bytes(b"1" * 2_345_678)
    print_engines([BuiltEngine("w8a8", CachedEngine(path, 83.25, from_cache=False))])
    out = capsys.readouterr().out
    check_whole(out, width, ("engine", "size", "seconds", "built", "file", "2.35 MB", "83.2", "now"))
    assert "".join(line.split("│")[5].strip() for line in out.splitlines() if line[0] == "│") == path.name


def test_bundle_for_onnxruntime_gets_its_graphs_optimized_and_sampling_takes_them(own_tiny: TinyBundle) -> None:
    done = CliRunner().invoke(main, ["engines", str(own_tiny.folder)])
    assert done.exit_code == 0, done.output
    assert "these engines compute the same as the graphs" in done.output
    built = build_engines(own_tiny.folder)
    assert {engine.name: engine.engine.from_cache for engine in built} == {"fp32": True, "w8a8": True, "w4a8": True}
    built[0].engine.path.write_bytes(b"no graph")
    with pytest.raises(PtqdError, match="An optimized graph was changed"):
        EngineBank(Bundle.open(own_tiny.folder), 1.5)["fp32"]


def test_bundle_for_another_runtime_has_no_engines(own_tiny: TinyBundle) -> None:
    with pytest.raises(UsageError, match="not for TensorRT"):
        build_engines(own_tiny.folder, "tensorrt-rtx")
    own_tiny.edit_json("manifest.json", lambda manifest: manifest["target"].update(provider="CUDA"))
    with pytest.raises(UsageError, match="does not build engines"):
        build_engines(own_tiny.folder)


def test_damaged_graph_is_told_before_the_builder_sees_it(bundle: TinyBundle) -> None:
    bundle.edit("graphs/onnxruntime/w8a8.onnx", lambda content: content[:-1])
    done = CliRunner().invoke(main, ["engines", str(bundle.folder)])
    assert done.exit_code == 1
    assert "changed or damaged" in done.output
