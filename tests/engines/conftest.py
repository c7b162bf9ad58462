"""Small graphs that the real builder accepts, rejects or crashes on, and fakes of CUDA and TensorRT on host memory."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.tensorrt.device.arena import Arena
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.device.update_kernel import SOURCE, UpdateKernels
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.backends.tensorrt.tensorrt_engine import OpenOptions, TensorRtEngine
from tests.engines.backends.tensorrt.host_cuda import HostCuda
from tests.engines.backends.tensorrt.host_driver import HostDriver, HostNvrtc, compile_for_host
from tests.engines.backends.tensorrt.host_tensorrt import Array, HostTensorRt
from tests.engines.cut_bundle import cut_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

CHANNELS = 4


def quantized_graph(path: Path, *, layers: int = 1, zero_point: int = 0, scale: str = "s") -> Path:
    """Write a graph of convolutions with int8 Q/DQ on inputs and weights, which adds the timestep to the result.

    `scale="r"` makes the scale a run-time input.
    """
    weight = np.random.default_rng(0).integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
    constants = {
        "s": np.float32(0.05), "z": np.array(zero_point, np.int8), "w": weight,
        "ws": np.full(CHANNELS, 0.01, np.float32), "wz": np.zeros(CHANNELS, np.int8), "axes": np.array([1, 2, 3]),
    }  # fmt: skip
    nodes, state = [], "sample"
    for n in range(layers):
        nodes += [
            helper.make_node("QuantizeLinear", [state, scale, "z"], [f"q{n}"], name=f"quantize{n}"),
            helper.make_node("DequantizeLinear", [f"q{n}", scale, "z"], [f"d{n}"], name=f"dequantize{n}"),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], [f"w{n}"], name=f"weight{n}", axis=0),
            helper.make_node("Conv", [f"d{n}", f"w{n}"], [f"c{n}"], name=f"conv{n}", pads=[1, 1, 1, 1]),
        ]
        state = f"c{n}"
    nodes += [
        helper.make_node("Unsqueeze", ["timestep", "axes"], ["t"], name="unsqueeze"),
        helper.make_node("Add", [state, "t"], ["out"], name="add"),
    ]
    inputs = [_value("sample", ["N", CHANNELS, 8, 8]), _value("timestep", ["N"]), *([_value("r", [])] if scale == "r" else [])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "small", inputs, [_value("out", ["N", CHANNELS, 8, 8])], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def _value(name: str, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return quantized_graph(tmp_path / "w8a8.onnx")


@pytest.fixture
def make_graph(tmp_path: Path) -> Callable[..., Path]:
    """Write another graph with the options of `quantized_graph`."""
    return lambda name="other", **options: quantized_graph(tmp_path / f"{name}.onnx", **options)


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    """A fake that replaces `cuda.bindings.runtime`."""
    fake = HostCuda(pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake)
    return fake


@pytest.fixture
def host_tensorrt(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    """A fake that replaces `tensorrt_rtx`, with the engines `double`, `negate` and `shown`, and `full` and `reuse` of a cut."""

    def network(factor: float) -> Callable[..., Array]:
        return lambda sample, timestep, labels: np.float32(factor) * sample + (timestep / 1000 + labels)[:, None, None, None]

    def reusing(sample: Array, timestep: Array, labels: Array, kept: Array) -> Array:
        return network(0.5)(sample + kept, timestep, labels)

    cut: dict[bytes, Callable[..., Array]] = {
        b"full": lambda sample, timestep, labels: reusing(sample, timestep, labels, sample),
        b"reuse": reusing,
    }
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    fake = HostTensorRt(real, host_cuda, {b"double": network(2.0), b"negate": network(-1.0), b"shown": network(2.0), **cut})
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


@pytest.fixture
def arena(host_cuda: HostCuda) -> Arena:
    del host_cuda
    return Arena(Cuda())


@pytest.fixture
def open_engine(host_tensorrt: HostTensorRt, arena: Arena, tmp_path: Path) -> Callable[..., TensorRtEngine]:
    """Open an engine of `host_tensorrt`."""
    del host_tensorrt

    def open_(name: str, **options: Any) -> TensorRtEngine:
        path = tmp_path / f"{name}.engine"
        path.write_bytes(name.encode())
        return TensorRtEngine(path, FLAVOURS["tensorrt-rtx"], arena, OpenOptions(**options))

    return open_


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels of the update, compiled for the host."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler to compile the kernels with")
    return compile_for_host(compiler, SOURCE, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def kernels(host_cuda: HostCuda, kernel_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> UpdateKernels:
    """The update's kernels on fakes that replace CUDA's driver and run-time compiler."""
    driver, nvrtc = (pytest.importorskip(f"cuda.bindings.{name}", reason="cuda-bindings is not installed") for name in ("driver", "nvrtc"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", HostDriver(driver, kernel_library, host_cuda))
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", HostNvrtc(nvrtc))
    return UpdateKernels(Cuda())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs that engines were started from."""
    seen: list[str] = []

    def start(path: Any, **options: Any) -> OnnxRuntimeEngine:
        seen.append(path.stem)
        return OnnxRuntimeEngine(path, **options)

    monkeypatch.setattr("engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", start)
    return seen


@pytest.fixture
def cut(own_tiny: TinyBundle) -> TinyBundle:
    """A tiny bundle whose networks are cut, and whose odd steps reuse features; see `tests.engines.cut_bundle`."""
    return cut_bundle(own_tiny)
