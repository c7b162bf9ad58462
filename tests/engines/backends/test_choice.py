"""The runtime that was asked for runs the graphs, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engines.backends.choice import engine_settings, on_onnxruntime, open_backend, runtime_name
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from engines.backends.openvino.openvino_backend import OpenVinoBackend
from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.bundle.bundle import Bundle
from engines.errors import MissingBackendError, UsageError
from engines.host.machine import machine_name
from engines.networks.chain_choice import ChainChoice

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

TARGET = {"name": "tensorrt-rtx", "high_precision": "fp32", "profile": {"min": 1, "opt": 4, "max": 8}, "workspace_gib": 1.5}


def for_tensorrt(bundle: TinyBundle) -> Bundle:
    def change(manifest: dict[str, Any]) -> None:
        manifest["target"] = TARGET

    bundle.edit_json("manifest.json", change)
    return Bundle.open(bundle.folder)


def test_bundle_for_onnxruntime_takes_its_fused_kernels(tiny: TinyBundle) -> None:
    backend = on_onnxruntime(Bundle.open(tiny.folder))
    assert open_backend(Bundle.open(tiny.folder), "target") == backend
    assert (backend.mode, backend.provider) == ("fast", "CPU")


def test_openvino_is_taken_where_it_is_asked_for(tiny: TinyBundle) -> None:
    backend = open_backend(Bundle.open(tiny.folder), "openvino", threads=3)
    assert backend == OpenVinoBackend(3, tiny.folder / "local" / machine_name() / "openvino")


def test_graphs_of_another_target_run_as_written(own_tiny: TinyBundle) -> None:
    assert on_onnxruntime(for_tensorrt(own_tiny)).mode == "exact"
    assert on_onnxruntime(Bundle.open(own_tiny.folder), provider="CUDA").mode == "exact"


def test_bundle_for_the_gpu_runs_there_unless_told_otherwise(own_tiny: TinyBundle) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["target"]["provider"] = "CUDA"

    own_tiny.edit_json("manifest.json", change)
    bundle = Bundle.open(own_tiny.folder)
    assert runtime_name(bundle, "target") == "onnxruntime-cuda"
    assert open_backend(bundle, "target") == on_onnxruntime(bundle) == OnnxRuntimeBackend(None, "CUDA", "exact")
    assert open_backend(bundle, "onnxruntime") == OnnxRuntimeBackend(None, "CPU", "fast", OptimizedGraphs.of(bundle))


def test_engine_settings_are_the_manifests(own_tiny: TinyBundle) -> None:
    settings = engine_settings(for_tensorrt(own_tiny), "tensorrt-rtx")
    assert (settings.flavour, settings.profile, settings.workspace_gib) == ("tensorrt-rtx", BatchProfile(1, 4, 8), 1.5)


def test_bundle_for_onnxruntime_has_no_engines(tiny: TinyBundle) -> None:
    with pytest.raises(UsageError, match=r"(?s)not for TensorRT.*target onnxruntime.*tensorrt or tensorrt-rtx"):
        open_backend(Bundle.open(tiny.folder), "tensorrt-rtx")


def test_device_that_is_missing_is_told_and_nothing_runs_in_its_place(own_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Any) -> None:
        raise MissingBackendError("There is no CUDA device.")

    monkeypatch.setattr("engines.backends.tensorrt.device.cuda.Cuda.__init__", absent)
    bundle = for_tensorrt(own_tiny)
    with pytest.raises(MissingBackendError, match="no CUDA device"):
        ChainChoice().open(bundle, 2)
    assert ChainChoice(runtime="onnxruntime").open(bundle, 2).step_precisions


def test_steps_on_the_device_are_for_tensorrt_alone(tiny: TinyBundle) -> None:
    with pytest.raises(UsageError, match="Only TensorRT can compute the steps on the device"):
        ChainChoice(update="device").open(Bundle.open(tiny.folder), 2)
