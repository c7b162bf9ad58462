"""Small graphs that the real builder accepts, rejects or crashes on, and small engines of the emulated device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.tensorrt.device.arena import Arena
from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.device.update_kernel import UpdateKernels
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.backends.tensorrt.tensorrt_engine import OpenOptions, TensorRtEngine
from tests.emulated_device.emulated_device import EmulatedDevice
from tests.emulated_device.emulated_tensorrt import Array, EmulatedNetwork, Tensor
from tests.engines.cut_bundle import cut_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

CHANNELS = 4

Compute: TypeAlias = Callable[[Mapping[str, Array]], Array]


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


def _network(factor: float, inputs: Sequence[Tensor] = (), outputs: Sequence[Tensor] = (), **own: Compute) -> EmulatedNetwork:
    """A network `factor (sample + kept) + timestep / 1000 + class_labels`; `own` computes its outputs besides `out`."""
    sample, taken = Tensor.of("sample", (1, 8, 8)), tuple(inputs)

    def compute(feeds: Mapping[str, Array]) -> dict[str, Array]:
        state = feeds["sample"] + feeds["kept"] if "kept" in feeds else feeds["sample"]
        out = np.float32(factor) * state + (feeds["timestep"] / 1000 + feeds["class_labels"])[:, None, None, None]
        return {"out": out, **{name: of_feeds(feeds) for name, of_feeds in own.items()}}

    conditions = (Tensor.of("timestep", ()), Tensor.of("class_labels", (), np.int64))
    return EmulatedNetwork((*taken, sample, *conditions), (Tensor.of("out", (1, 8, 8)), *outputs), compute)


def _networks() -> dict[bytes, EmulatedNetwork]:
    """`double`, `negate`; `shown`, whose second output is in half precision and has two rows for each of the batch; both parts of a cut."""
    kept, inside = Tensor.of("kept", (1, 8, 8)), Tensor.of("inside", (4,), np.float16, rows=2)
    return {
        b"double": _network(2.0),
        b"negate": _network(-1.0),
        b"shown": _network(2.0, outputs=[inside], inside=lambda feeds: feeds["sample"].reshape(2 * len(feeds["sample"]), -1)[:, :4]),
        b"full": _network(1.0, outputs=[kept], kept=lambda feeds: feeds["sample"]),
        b"reuse": _network(0.5, inputs=[kept]),
    }


@pytest.fixture
def arena(emulated: EmulatedDevice) -> Arena:
    del emulated
    return Arena(Cuda())


@pytest.fixture
def open_engine(emulated: EmulatedDevice, arena: Arena, tmp_path: Path) -> Callable[..., TensorRtEngine]:
    """Open an engine of the emulated device: `double`, `negate`, `shown`, and `full` and `reuse` of a cut."""
    emulated.tensorrt.networks.update(_networks())

    def open_(name: str, **options: Any) -> TensorRtEngine:
        path = tmp_path / f"{name}.engine"
        path.write_bytes(name.encode())
        return TensorRtEngine(path, FLAVOURS["tensorrt-rtx"], arena, OpenOptions(**options))

    return open_


@pytest.fixture
def kernels(emulated: EmulatedDevice) -> UpdateKernels:
    """The update's kernels on the emulated device."""
    del emulated
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
