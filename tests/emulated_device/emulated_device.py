"""One emulated GPU for all tests: CUDA, its driver and compiler, and TensorRT-RTX, whose engines ONNX Runtime computes underneath."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.backends.onnxruntime.onnxruntime_session import open_session, session_config
from engines.backends.tensorrt import layer_run
from engines.backends.tensorrt.building import engine_cache
from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.backends.tensorrt.device.residency import residency
from tests.emulated_device.emulated_cuda import EmulatedCuda
from tests.emulated_device.emulated_driver import EmulatedDriver, EmulatedNvrtc
from tests.emulated_device.emulated_tensorrt import EmulatedNetwork, EmulatedTensorRt, Stored, Tensor

_STORED = {1: "FLOAT", 3: "INT8", 6: "INT32", 10: "HALF", 22: "INT4"}
"""Types of constants, by ONNX's numbers."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

REAL = {
    "cuda.bindings.runtime": "cuda-bindings",
    "cuda.bindings.driver": "cuda-bindings",
    "cuda.bindings.nvrtc": "cuda-bindings",
    "tensorrt_rtx": "tensorrt-rtx",
}
"""Modules that are emulated, and the packages that have them."""


class EmulatedDevice:
    """The device.

    Args:
        folder: where the graphs of engines lie while they are open.
        real: the real modules by name; None imports them.

    Attributes:
        cuda: memory, streams, events and graphs.
        tensorrt: engines.
    """

    def __init__(self, folder: Path, real: Mapping[str, Any] | None = None) -> None:
        self._real = real or {name: pytest.importorskip(name, reason=f"{package} is not installed") for name, package in REAL.items()}
        self.cuda = EmulatedCuda(self._real["cuda.bindings.runtime"])
        self.tensorrt = EmulatedTensorRt(self._real["tensorrt_rtx"], self.cuda, read=self._read)
        self._folder = folder

    def restarted(self, patch: pytest.MonkeyPatch) -> EmulatedDevice:
        """Install and return the device as a new process finds it."""
        device = EmulatedDevice(self._folder, self._real)
        device.install(patch)
        return device

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Let every import find this device, and every build of an engine make one for it."""
        modules: dict[str, Any] = {
            "cuda.bindings.runtime": self.cuda,
            "cuda.bindings.driver": EmulatedDriver(self._real["cuda.bindings.driver"], self.cuda),
            "cuda.bindings.nvrtc": EmulatedNvrtc(self._real["cuda.bindings.nvrtc"]),
            "tensorrt_rtx": self.tensorrt,
        }
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        for module in (engine_cache, layer_run):
            patch.setattr(module, "build_engine", build)
        residency.cache_clear()

    def _read(self, plan: bytes) -> EmulatedNetwork | None:
        header, _, graph = plan.partition(b"\n")
        if not header.startswith(b"{"):
            return None
        path = self._folder / f"{hashlib.sha256(graph).hexdigest()}.onnx"
        path.write_bytes(graph)
        said = json.loads(header)
        return network(path, tuple(said["batches"]), tuple(said["refittable"]))


def build(spec: BuildSpec, output: Path, **_: Any) -> None:
    """Stands in for `build_engine`: the engine is the graph with its weights, behind a line that has its batches."""
    header = {"batches": (spec.profile.min, spec.profile.opt, spec.profile.max), "refittable": spec.refittable}
    output.write_bytes(json.dumps(header).encode() + b"\n" + onnx.load(spec.graph).SerializeToString())


def network(graph: Path, batches: tuple[int, int, int], refittable: tuple[str, ...] = ()) -> EmulatedNetwork:
    """Return the network of a graph, which ONNX Runtime runs as it is written."""
    session = open_session(graph, session_config("exact"))
    inputs, outputs = (
        tuple(Tensor.of(one.name, tuple(one.shape[1:]), _DTYPES[one.type]) for one in values)
        for values in (session.get_inputs(), session.get_outputs())
    )
    names = [tensor.name for tensor in outputs]
    stored = {one.name: _stored(one) for one in onnx.load(graph).graph.initializer if one.name in refittable}
    assert stored.keys() == set(refittable)

    def refitted(values: Mapping[str, bytes]) -> EmulatedNetwork:
        model = onnx.load(graph)
        for one in model.graph.initializer:
            if one.name in values:
                for kind in ("float_data", "int32_data", "int64_data"):
                    one.ClearField(kind)
                one.raw_data = values[one.name]
        path = graph.with_name(f"{graph.stem}.{hashlib.sha256(b''.join(values.values())).hexdigest()}.onnx")
        onnx.save(model, path)
        return network(path, batches, refittable)

    compute = lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))  # noqa: E731
    return EmulatedNetwork(inputs, outputs, compute, batches, stored, refitted)


def _stored(one: onnx.TensorProto) -> Stored:
    dtype, size = _STORED[one.data_type], int(np.prod(one.dims))
    return Stored(dtype, size, len(onnx.numpy_helper.to_array(one).tobytes()) if dtype != "INT4" else -(-size // 2))
