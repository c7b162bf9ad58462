"""Engines of another runtime against the statistics of their bundle: here ONNX Runtime again, in its place, right and with a fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import numpy_helper

from engines.apps.compare.engine_check import DepartureError
from engines.backends.base import Engine
from engines.backends.cached_engine import CachedEngine
from engines.backends.choice import on_onnxruntime
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.commands.engines_command import check_built
from ptqd_export.stages.finish.keep_optimized import BuiltEngine

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

FAULTY = "down_blocks.1.resnets.0.conv2"


@dataclass
class Runtime:
    """ONNX Runtime, which runs one precision's graph with the weight scale of a layer doubled."""

    right: OnnxRuntimeBackend
    wrong: str
    folder: Path

    def open(self, graph: Path, rows: int) -> Engine:
        assert rows <= 8
        if graph.stem == self.wrong:
            model = onnx.load(graph)
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == f"{FAULTY}.weight.scale")
            tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
            graph = self.folder / graph.name
            onnx.save(model, graph)
        return self.right.open(graph, rows)


@pytest.fixture
def run(class_trt_build: Built, tmp_path: Path) -> Callable[[str], Runtime]:
    bundle = Bundle.open(class_trt_build.folder)
    return lambda wrong: Runtime(on_onnxruntime(bundle), wrong, tmp_path)


def test_right_engines_have_the_noise_of_the_statistics(class_trt_build: Built, run: Callable[[str], Runtime]) -> None:
    assert check_on(Bundle.open(class_trt_build.folder), run("none")) < 0.02


def test_wrong_engine_is_named(class_trt_build: Built, run: Callable[[str], Runtime]) -> None:
    with pytest.raises(DepartureError, match=r"(?s)engine of w8a8 is not the one.*at step 0") as error:
        check_on(Bundle.open(class_trt_build.folder), run("w8a8"))
    assert error.value.precision == "w8a8"


def test_wrong_engine_is_removed_and_no_other(
    class_trt_build: Built, run: Callable[[str], Runtime], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(class_trt_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("local")))
    built = [BuiltEngine(name, CachedEngine(tmp_path / f"{name}.engine", 1.0, from_cache=False)) for name in ("fp32", "w8a8")]
    for engine in built:
        engine.engine.path.write_bytes(b"engine")
    monkeypatch.setattr("ptqd_export.commands.engines_command.TensorRtBackend", lambda _settings, _folder: run("none"))
    assert check_built(folder, built).startswith("checked against the statistics: no SNR differs by more than 0.0")
    monkeypatch.setattr("ptqd_export.commands.engines_command.TensorRtBackend", lambda _settings, _folder: run("w8a8"))
    with pytest.raises(DepartureError):
        check_built(folder, built)
    assert [engine.engine.path.exists() for engine in built] == [True, False]
