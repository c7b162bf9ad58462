"""Large graphs are read where their weights lie: same values, without copies of the weights."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.backends.onnxruntime import onnxruntime_session
from engines.backends.onnxruntime.onnxruntime_session import Mode, open_session, session_config
from engines.host.heap import release_free_pages
from tools.bench.memory import memory_mib

SIDE = 4096
FLOAT_MIB = 4 * SIDE**2 / 2**20


def product(path: Path, *, integers: bool) -> Path:
    """Write `x @ w` with a square weight in a file beside the graph, as floats or as dequantized integers."""
    integer = np.random.default_rng(0).integers(-127, 128, (SIDE, SIDE), np.int8)
    x = ir.Value(name="x", shape=ir.Shape([None, SIDE]), type=ir.TensorType(ir.DataType.FLOAT))
    constants = {"w": integer} if integers else {"w": integer.astype(np.float32) / 128}
    constants |= {"scale": np.full(SIDE, 1 / 128, np.float32), "zero": np.zeros(SIDE, np.int8)} if integers else {}
    values = {name: ir.Value(name=name, const_value=ir.tensor(value, name=name)) for name, value in constants.items()}
    tape = ir.tape.Tape()
    weight = tape.op("DequantizeLinear", list(values.values()), attributes={"axis": 1}) if integers else values["w"]
    out = tape.op("MatMul", [x, weight])
    out.name, out.shape, out.type = "out", ir.Shape([None, SIDE]), x.type
    graph = ir.Graph([x], [out], nodes=tape.nodes, initializers=list(values.values()), opset_imports={"": 21})
    ir.save(ir.Model(graph, ir_version=10), path, external_data=f"{path.name}.data")
    return path


@pytest.mark.parametrize(("integers", "mode"), [(False, "fast"), (False, "exact"), (True, "exact")])
def test_a_large_graph_holds_no_copy_of_its_weights(integers: bool, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = product(tmp_path / "product.onnx", integers=integers), np.ones((2, SIDE), np.float32)
    open_it = functools.partial(open_session, path, session_config(mode))
    held, outputs = [], []
    for limit in (2**40, 2**20):
        monkeypatch.setattr(onnxruntime_session, "_LARGE_BYTES", limit)
        release_free_pages()
        before = memory_mib("RssAnon")
        session = open_it()
        release_free_pages()
        held.append(memory_mib("RssAnon") - before)
        outputs.append(session.run(None, {"x": x})[0])
        del session
    small, large = held
    assert small > 0.9 * FLOAT_MIB
    assert large < 0.3 * FLOAT_MIB
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-3 * np.abs(outputs[0]).max())


def test_weights_inside_a_graph_are_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_session, "_LARGE_BYTES", 0)
    assert not onnxruntime_session._is_large(onnxruntime_session.PROBE)


def test_a_piece_is_opened_as_the_network_that_its_weights_belong_to(tmp_path: Path) -> None:
    """A piece without integers would otherwise multiply in other kernels than the whole network, and differ in its last bits."""
    for integers in (True, False):
        whole = product(tmp_path / f"{integers}.onnx", integers=integers)
        piece = ir.load(product(tmp_path / "piece.onnx", integers=False))
        for value in piece.graph.initializers.values():
            value.const_value = ir.ExternalTensor(
                f"{whole.name}.data", 0, 4 * SIDE, ir.DataType.FLOAT, name="w", shape=ir.Shape([SIDE]), base_dir=tmp_path
            )
        ir.save(piece, tmp_path / "piece.onnx")
        assert onnxruntime_session._has_integers(tmp_path / "piece.onnx") is integers
