"""Statistics measured on TensorRT's engines, on the emulated device: those of the CPU."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ray import cloudpickle

from engines.backends.base import Engine, TensorSpec
from engines.backends.choice import engine_settings
from engines.backends.tensorrt.building.engine_cache import EngineCache
from engines.backends.tensorrt.tensorrt_backend import engine_cache
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from ptqd_export.commands.engines_command import build_engines, check_built
from ptqd_export.measuring.cluster_networks import ClusterTarget, NetworkOpener
from ptqd_export.measuring.target_engines import InBatches, TargetEngines
from ptqd_export.stages.run_build import run_build
from tests.emulated_device.emulated_device import EmulatedDevice

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.mark.usefixtures("emulated")
def test_build_measures_on_the_engines_that_will_run(class_trt_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are built once, and sampling finds them."""
    target = class_trt_build.plan_file.plan.target.model_dump(mode="json") | {"measure": "engines"}
    run_build(class_trt_build.resumed_in(tmp_path / "bundle", target=target))
    cpu, engines = Bundle.open(class_trt_build.folder), Bundle.open(tmp_path / "bundle")
    assert (cpu.manifest.measured_on, engines.manifest.measured_on) == ("onnxruntime", "tensorrt-rtx")
    assert engines.schedule() == cpu.schedule()
    for name in ("w8a8", "w4a8", "w4a4"):
        file = f"statistics/tensorrt/{name}.json"
        assert engines.json(file)["steps"] == cpu.json(file)["steps"]
    settings = engine_settings(engines, "tensorrt-rtx")
    monkeypatch.setattr(EngineCache, "_build", lambda *_: pytest.fail("an engine is built again"))
    assert engine_cache(engines.folder, "tensorrt-rtx").get(settings.spec(engines.graph("graphs/tensorrt/w8a8.onnx"))).from_cache


def test_engines_are_checked_where_there_is_a_device(class_trt_build: Built, emulated: EmulatedDevice, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_trt_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("local")))
    built = build_engines(folder)
    assert check_built(folder, built).startswith("checked against the statistics: no SNR differs by more than 0.0")
    assert "cudaGraphLaunch" in emulated.cuda.calls


@pytest.mark.usefixtures("emulated")
def test_worker_of_a_cluster_measures_on_engines_that_it_builds(class_trt_build: Built, tmp_path: Path) -> None:
    """They lie in the bundle where the worker has it, or else beside its copy of the graphs."""
    context, graph = class_trt_build.context, class_trt_build.stage("quantize-w8a8") / "w8a8.onnx"
    target = ClusterTarget("tensorrt-rtx", "CPU", "fp32")
    opener = NetworkOpener(target, context.model.conditioning, context.guidance, 2)
    settings = engine_settings(Bundle.open(class_trt_build.folder), "tensorrt-rtx")
    sent = cloudpickle.dumps(replace(opener, engines=TargetEngines(settings, tmp_path)))  # type: ignore[no-untyped-call]
    on_engines: NetworkOpener = cloudpickle.loads(sent)
    x, rows = NoiseSource(3, (1, 8, 8)).start(np.arange(2)), np.array([0, 2])
    for folder, one in ((tmp_path, on_engines), (tmp_path / "copy", on_engines.in_folder(tmp_path / "copy"))):
        exact, found = (each.networks({"w8a8": [[(math.inf, graph)]]}, "w8a8", 1).reference(x, 500.0, rows) for each in (opener, one))
        np.testing.assert_array_equal(exact, found)
        assert len(list(engine_cache(folder, "tensorrt-rtx").folder.glob("w8a8-*.engine"))) == 1
    assert opener.in_folder(tmp_path / "copy") is opener


class Cut(Engine):
    """Doubles at most two rows, and keeps their negatives."""

    def __init__(self) -> None:
        spec = TensorSpec("x", np.dtype(np.float32), (3,))
        super().__init__("cut", (spec,), spec, TensorSpec("kept", np.dtype(np.float32), (3,)))

    def _run(self, feeds: Any) -> Any:
        assert len(feeds["x"]) <= 2
        return [2 * feeds["x"], -feeds["x"]]


def test_an_engine_with_a_largest_batch_takes_a_larger_one_in_parts() -> None:
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    engine = InBatches(Cut(), 2)
    np.testing.assert_array_equal(engine.run({"x": x}), 2 * x)
    for found, expected in zip(engine.run_keeping({"x": x}), (2 * x, -x), strict=True):
        np.testing.assert_array_equal(found, expected)
