"""ONNX Runtime behind the engine's interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends.base import TensorSpec
from engines.backends.onnxruntime.onnxruntime_backend import PIECE_VALUES, OnnxRuntimeEngine, _cuts
from engines.backends.onnxruntime.onnxruntime_session import Mode
from engines.errors import MissingBackendError, PtqdError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
GRAPH = "graphs/onnxruntime/fp32.onnx"


def test_graph_becomes_an_engine_with_its_inputs_and_output(tiny: TinyBundle) -> None:
    engine = OnnxRuntimeEngine(tiny.folder / GRAPH)
    assert engine.inputs == (
        TensorSpec("sample", FLOAT32, (1, 8, 8)),
        TensorSpec("timestep", FLOAT32, ()),
        TensorSpec("class_labels", INT64, ()),
    )
    assert engine.output == TensorSpec("out", FLOAT32, (1, 8, 8))
    assert engine.label == "fp32 on ONNX Runtime"


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("batch", [1, 5])
def test_engine_computes_the_network(tiny: TinyBundle, mode: Mode, batch: int) -> None:
    x = np.random.default_rng(0).normal(size=(batch, 1, 8, 8)).astype(np.float32)
    classes = np.arange(batch) % 4
    feeds: dict[str, Any] = {"sample": x, "timestep": np.full(batch, 321, dtype=np.float32), "class_labels": classes}
    out = OnnxRuntimeEngine(tiny.folder / GRAPH, mode=mode).run(feeds)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, tiny.networks["fp32"](x, 321, classes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_batch_that_is_cut_into_shards_comes_back_whole_and_in_order(tiny: TinyBundle, batch: int) -> None:
    x = np.random.default_rng(0).normal(size=(batch, 1, 8, 8)).astype(np.float32)
    feeds: dict[str, Any] = {"sample": x, "timestep": np.full(batch, 321, dtype=np.float32), "class_labels": np.arange(batch) % 4}
    whole, sharded = (OnnxRuntimeEngine(tiny.folder / GRAPH, threads=3, batch=to_come).run(feeds) for to_come in (1, 3))
    np.testing.assert_allclose(sharded, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "workers", "values", "cuts"),
    [
        (7, 3, PIECE_VALUES, [0, 1, 2, 3, 4, 5, 6, 7]),  # one by one, whatever they are worth
        (7, 3, 10 * PIECE_VALUES, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 2, PIECE_VALUES // 4, [0, 4, 8]),
        (9, 2, PIECE_VALUES // 4, [0, 2, 4, 6, 9]),  # two rounds of both workers, none of more than four
        (16, 2, PIECE_VALUES // 4, [0, 4, 8, 12, 16]),
        (2, 2, 1, [0, 1, 2]),
    ],
)
def test_pieces_are_small_and_every_worker_gets_as_many(batch: int, workers: int, values: int, cuts: list[int]) -> None:
    assert _cuts(batch, workers, values) == cuts


def test_a_sample_is_the_same_to_the_bit_whatever_the_batch(tiny: TinyBundle) -> None:
    x = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    feeds: dict[str, Any] = {"sample": x, "timestep": np.full(40, 321, dtype=np.float32), "class_labels": np.arange(40) % 4}
    engine = OnnxRuntimeEngine(tiny.folder / GRAPH, threads=2, batch=40)
    alone = [engine.run({name: value[i : i + 1] for name, value in feeds.items()}) for i in range(40)]
    np.testing.assert_array_equal(engine.run(feeds), np.concatenate(alone))


def test_rows_that_do_not_lie_end_to_end_are_taken_as_they_are_meant(tiny: TinyBundle) -> None:
    x = np.random.default_rng(0).normal(size=(8, 8, 1, 6)).astype(np.float32).transpose(3, 2, 0, 1)
    feeds: dict[str, Any] = {
        "sample": x,
        "timestep": np.broadcast_to(np.float32(321), 6),
        "class_labels": np.arange(12)[::2] % 4,
    }
    out = OnnxRuntimeEngine(tiny.folder / GRAPH, threads=2, batch=6).run(feeds)
    np.testing.assert_allclose(out, tiny.networks["fp32"](x, 321, feeds["class_labels"]), rtol=0, atol=1e-5)


def test_results_of_earlier_calls_stay_as_they_were(tiny: TinyBundle) -> None:
    engine = OnnxRuntimeEngine(tiny.folder / GRAPH, threads=2, batch=4)
    results = []
    for timestep in (100, 900):
        x = np.zeros((4, 1, 8, 8), dtype=np.float32)
        feeds: dict[str, Any] = {
            "sample": x,
            "timestep": np.full(4, timestep, dtype=np.float32),
            "class_labels": np.zeros(4, dtype=np.int64),
        }
        results.append((timestep, engine.run(feeds)))
    for timestep, out in results:
        np.testing.assert_allclose(out, tiny.networks["fp32"](x, timestep, np.zeros(4, dtype=np.int64)), rtol=0, atol=1e-5)


def quantized_matmul(path: Path) -> Path:
    """`x @ ones`, both as Q/DQ: 64 products of 255/2 and 127, which a 16-bit sum of two cannot hold."""
    constants = {
        "x_scale": np.float32(1 / 128), "x_zero": np.uint8(0), "w": np.full((64, 8), 127, dtype=np.int8),
        "w_scale": np.float32(1 / 127), "w_zero": np.int8(0), "y_scale": np.float32(1), "y_zero": np.uint8(0),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        helper.make_node("QuantizeLinear", ["y", "y_scale", "y_zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["out"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 8])]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "matmul", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_integer_products_do_not_saturate(tmp_path: Path, mode: Mode) -> None:
    engine = OnnxRuntimeEngine(quantized_matmul(tmp_path / "matmul.onnx"), mode=mode)
    x = np.array([[255 / 128] * 64, [0.5] * 64, [0.0] * 64], dtype=np.float32)
    np.testing.assert_allclose(engine.run({"x": x})[:, 0], [127.5, 32, 0], atol=0.51)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_fast_mode_fuses_integer_kernels_and_exact_mode_does_not(tmp_path: Path) -> None:
    path = quantized_matmul(tmp_path / "matmul.onnx")
    modes: tuple[Mode, Mode] = ("fast", "exact")
    for mode in modes:
        OnnxRuntimeEngine(path, mode=mode, optimized=tmp_path / f"{mode}.onnx")
    assert "QLinearMatMul" in operators(tmp_path / "fast.onnx")
    assert "QLinearMatMul" not in operators(tmp_path / "exact.onnx")
    assert "MatMul" in operators(tmp_path / "exact.onnx")


@pytest.mark.parametrize(("mode", "operator"), [("fast", "QLinearMatMul"), ("exact", "MatMul")])
def test_watched_engine_runs_the_kernels_of_the_engine_and_records_them(tmp_path: Path, mode: Mode, operator: str) -> None:
    engine = OnnxRuntimeEngine(quantized_matmul(tmp_path / "matmul.onnx"), mode=mode)
    watched, feeds = engine.watched(tmp_path / "profile"), {"x": np.full((2, 64), 0.5, dtype=np.float32)}
    np.testing.assert_array_equal(watched.run(feeds), engine.run(feeds))
    events = json.loads(watched.end_profiling().read_text())
    recorded = {event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")}
    assert {name for name in recorded if name.endswith("MatMul")} == {operator}


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "other", "truncated"])
def test_graph_that_the_runtime_refuses_is_one_error_with_its_path(tiny: TinyBundle, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes((tiny.folder / GRAPH).read_bytes()[:-50] if content is None else content)
    with pytest.raises(PtqdError, match="ONNX Runtime refuses the graph") as caught:
        OnnxRuntimeEngine(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_runtime_that_is_not_installed_is_a_missing_backend(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'ptqd-export\[cpu\]'") as caught:
        OnnxRuntimeEngine(tiny.folder / GRAPH)
    assert caught.value.exit_code == 3
