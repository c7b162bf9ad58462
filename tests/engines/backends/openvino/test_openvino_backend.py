"""OpenVINO behind the engine's interface: the values of ONNX Runtime, for any batch, and integer products that are exact."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.arrays import Float32
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.openvino import openvino_network
from engines.backends.openvino.narrow_weights import has_narrow_weights
from engines.backends.openvino.openvino_backend import OpenVinoBackend, OpenVinoEngine, run_outputs
from engines.backends.openvino.openvino_network import PIECE_VALUES, Calls, saturates
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import MissingBackendError, PtqdError
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

openvino = pytest.importorskip("openvino")

ROOT = Path(__file__).parents[4]
GRAPH = "graphs/onnxruntime/fp32.onnx"
LENGTH, COLUMNS = 64, 16


def feeds(batch: int, timestep: float = 321) -> dict[str, Any]:
    return {
        "sample": np.random.default_rng(batch).normal(size=(batch, 1, 8, 8)).astype(np.float32),
        "timestep": np.full(batch, timestep, dtype=np.float32),
        "class_labels": np.arange(batch) % 4,
    }


def computed(tiny: TinyBundle, given: dict[str, Any]) -> NDArray[Any]:
    """By the network's own arithmetic; one timestep for all rows."""
    return tiny.networks["fp32"](given["sample"], float(given["timestep"][0]), given["class_labels"])


# Batches


def test_graph_becomes_the_engine_that_it_is_on_onnxruntime(tiny: TinyBundle) -> None:
    engine, other = OpenVinoEngine(tiny.folder / GRAPH), OnnxRuntimeEngine(tiny.folder / GRAPH)
    assert (engine.inputs, engine.output) == (other.inputs, other.output)
    assert engine.label == "fp32 on OpenVINO"


@pytest.mark.parametrize(("promised", "threads"), [(1, 1), (1, 2), (3, 1), (3, 2), (8, 2)])
def test_engine_computes_the_network_for_any_batch(tiny: TinyBundle, promised: int, threads: int) -> None:
    engine = OpenVinoEngine(tiny.folder / GRAPH, threads=threads, batch=promised)
    for batch in (1, 2, 3, 7, 8):
        out = engine.run(feeds(batch))
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, computed(tiny, feeds(batch)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("batch", "threads", "values", "rows"),
    [
        (1, 2, 1, 1),
        (8, 2, 1, 4),  # halves
        (9, 2, 1, 5),  # and the last one filled up
        (8, 1, 1, 8),
        (3, 8, 1, 1),  # no more workers than rows
        (32, 2, PIECE_VALUES // 8, 8),  # two rounds of both workers
        (36, 2, PIECE_VALUES // 8, 6),  # three, of equal pieces
        (8, 2, 2 * PIECE_VALUES, 1),
    ],
)
def test_pieces_are_equal_and_not_too_large(batch: int, threads: int, values: int, rows: int) -> None:
    assert Calls(batch, threads).piece_rows(values) == rows


def test_a_row_is_the_same_to_the_bit_whatever_else_is_in_the_call(tiny: TinyBundle) -> None:
    engine, given = OpenVinoEngine(tiny.folder / GRAPH, threads=2, batch=6), feeds(13)
    alone = [engine.run({name: value[i : i + 1] for name, value in given.items()}) for i in range(13)]
    np.testing.assert_array_equal(engine.run(given), np.concatenate(alone))


def test_rows_that_do_not_lie_end_to_end_are_taken_as_they_are_meant(tiny: TinyBundle) -> None:
    x = np.random.default_rng(0).normal(size=(8, 8, 1, 6)).astype(np.float32).transpose(3, 2, 0, 1)
    given: dict[str, Any] = {"sample": x, "timestep": np.broadcast_to(np.float32(321), 6), "class_labels": np.arange(12)[::2] % 4}
    np.testing.assert_allclose(OpenVinoEngine(tiny.folder / GRAPH, threads=2, batch=6).run(given), computed(tiny, given), rtol=0, atol=1e-5)


def test_rows_that_may_not_be_written_to_are_read(tiny: TinyBundle) -> None:
    given = feeds(2)
    for value in given.values():
        value.setflags(write=False)
    np.testing.assert_allclose(OpenVinoEngine(tiny.folder / GRAPH, batch=2).run(given), computed(tiny, given), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_results_of_earlier_calls_stay_as_they_were(tiny: TinyBundle, batch: int) -> None:
    engine = OpenVinoEngine(tiny.folder / GRAPH, threads=2, batch=batch)
    results = [(timestep, engine.run(feeds(batch, timestep))) for timestep in (100, 900, 500)]
    for timestep, out in results:
        np.testing.assert_allclose(out, computed(tiny, feeds(batch, timestep)), rtol=0, atol=1e-5)


# Chains


def sampled(bundle: Bundle, choice: ChainChoice) -> Float32:
    noise, numbers = NoiseSource(1, bundle.manifest.model.sample_shape), np.arange(5, dtype=np.int64)
    return choice.open(bundle, 2).sample(noise, numbers, numbers % 3)


def test_a_chain_ends_with_the_images_of_onnxruntime(own_tiny: TinyBundle) -> None:
    bundle = Bundle.open(own_tiny.folder)
    ours, other = (sampled(bundle, ChainChoice(runtime=name, threads=2)) for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(ours, other, rtol=0, atol=1e-4)
    assert sorted(path.name for path in own_tiny.folder.glob("local/*/openvino/*")) == ["fp32.compiled", "w4a8.compiled", "w8a8.compiled"]


def test_latents_are_decoded_on_it_too(tiny_decoded: TinyBundle) -> None:
    states = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)
    bundle = Bundle.open(tiny_decoded.folder)
    np.testing.assert_allclose(open_decoder(bundle, "openvino")(states), open_decoder(bundle, "onnxruntime")(states), rtol=0, atol=1e-6)


def test_every_output_of_a_graph_is_there_by_its_name(tmp_path: Path) -> None:
    model = onnx.load(product_graph(extreme_integers()[1], tmp_path / "product.onnx"))
    model.graph.output.append(helper.make_tensor_value_info("x_float", TensorProto.FLOAT, ["N", LENGTH]))
    onnx.save(model, tmp_path / "both.onnx")
    x, w = extreme_integers()
    found = run_outputs(tmp_path / "both.onnx", {"x": x.astype(np.float32)})
    np.testing.assert_array_equal(found["x_float"], x)
    np.testing.assert_array_equal(found["out"], x @ w)


# Values


def extreme_integers() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Activations [8, LENGTH] in 0..255 and weights [LENGTH, COLUMNS] in -127..127, every other one the largest."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (8, LENGTH)), rng.integers(-127, 128, (LENGTH, COLUMNS))
    return np.where(rng.random(x.shape) < 0.5, 255, x), np.where(rng.random(w.shape) < 0.5, 127, w)


def product_graph(weight: NDArray[np.int64], path: Path, *, bits: int = 8, quantized_input: bool = True) -> Path:
    """`x @ weight` with scales of 1, as Q/DQ: the output is the integer sum. Weights of 4 bits are packed, and cast as in our graphs."""
    kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4
    constants = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in {"one": np.float32(1), "x_zero": np.uint8(0), "w_zero": np.int8(0)}.items()
    ]
    constants.append(helper.make_tensor("w", kind, weight.shape, weight.astype(np.int8).ravel().tolist()))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "x_zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "one", "x_zero"], ["x_float"]),
        helper.make_node("Cast", ["w"], ["w_int"], to=TensorProto.INT8),
        helper.make_node("DequantizeLinear", ["w_int", "one", "w_zero"], ["w_float"]),
        helper.make_node("MatMul", ["x_float" if quantized_input else "x", "w_float"], ["out"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", LENGTH])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", COLUMNS])
    graph = helper.make_graph(nodes if quantized_input else nodes[2:], "product", [x], [out], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def kernels(engine: OpenVinoEngine) -> list[str]:
    """Types that the matrix products of a compiled network compute in."""
    nodes = [node.get_rt_info() for node in engine._network.model.get_runtime_model().get_ordered_ops()]
    return [node["runtimePrecision"].value for node in nodes if node["layerType"].value == "FullyConnected"]


@pytest.mark.parametrize("bits", [8, 4])
def test_products_are_those_of_integers_and_computed_in_integers(tmp_path: Path, bits: int) -> None:
    x, w = extreme_integers()
    w = w if bits == 8 else w // 16
    engine = OpenVinoEngine(product_graph(w, tmp_path / "product.onnx", bits=bits), batch=8)
    np.testing.assert_array_equal(engine.run({"x": x.astype(np.float32)}), x @ w)
    if not saturates({}):
        assert kernels(engine) == ["u8"]


def test_inputs_that_the_graph_leaves_in_float_stay_so(tmp_path: Path) -> None:
    """Quantized on the way, as the runtime would by itself, they would be off by a half percent."""
    x, (_, w) = np.random.default_rng(1).normal(size=(8, LENGTH)).astype(np.float32), extreme_integers()
    out = OpenVinoEngine(product_graph(w, tmp_path / "product.onnx", quantized_input=False), batch=8).run({"x": x})
    np.testing.assert_allclose(out, x.astype(np.float64) @ w, rtol=0, atol=1e-6 * np.abs(w).sum(axis=0).max())


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor whose integer products saturate, as far as the probe says."""
    monkeypatch.setattr(openvino_network, "saturates", lambda _: True)
    openvino_network.sums_saturate.cache_clear()
    yield
    openvino_network.sums_saturate.cache_clear()


@pytest.mark.usefixtures("saturating")
def test_where_products_saturate_graphs_run_as_written(tmp_path: Path) -> None:
    x, w = extreme_integers()
    engine = OpenVinoEngine(product_graph(w, tmp_path / "product.onnx"), batch=8)
    assert kernels(engine) in (["f32"], ["i8"])  # floats, with weights that are unpacked in the kernel or before
    np.testing.assert_array_equal(engine.run({"x": x.astype(np.float32)}), x @ w)


@pytest.mark.usefixtures("saturating")
@pytest.mark.parametrize(
    ("lowest", "highest", "bits", "narrow"), [(-64, 63, 8, True), (-8, 7, 4, True), (-65, 63, 8, False), (-64, 64, 8, False)]
)
def test_weights_that_cannot_saturate_run_in_integers_anyway(tmp_path: Path, lowest: int, highest: int, bits: int, narrow: bool) -> None:
    """The bounds of 7-bit weights, and one beyond each; 4-bit weights are packed."""
    x, _ = extreme_integers()
    w = np.random.default_rng(2).integers(lowest, highest + 1, (LENGTH, COLUMNS))
    w[0, :2] = lowest, highest
    engine = OpenVinoEngine(product_graph(w, tmp_path / "product.onnx", bits=bits), batch=8)
    assert (kernels(engine) == ["u8"]) is narrow
    np.testing.assert_array_equal(engine.run({"x": x.astype(np.float32)}), x @ w)


@pytest.mark.usefixtures("saturating")
def test_products_of_float_inputs_may_have_wide_weights(tmp_path: Path) -> None:
    _, w = extreme_integers()
    path = product_graph(w, tmp_path / "product.onnx", quantized_input=False)
    assert has_narrow_weights(openvino.Core().read_model(path))
    assert not has_narrow_weights(openvino.Core().read_model(product_graph(w, tmp_path / "quantized.onnx")))


EMULATOR = "qemu-x86_64"

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from engines.backends.openvino.openvino_backend import OpenVinoEngine
from engines.backends.openvino.openvino_network import saturates

folder = Path(sys.argv[1])
x = np.load(folder / "x.npy")
out = OpenVinoEngine(folder / "product.onnx", threads=1, batch=len(x)).run({"x": x})
np.savez(folder / "found.npz", saturates=saturates({}), out=out)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(EMULATOR) is None or platform.machine() != "x86_64", reason=f"needs {EMULATOR} (Debian package qemu-user) on x86-64"
)
@pytest.mark.parametrize("narrow", [False, True])
def test_products_are_those_of_integers_where_they_would_saturate(tmp_path: Path, narrow: bool) -> None:
    x, w = extreme_integers()
    w = np.clip(w, -64, 63) if narrow else w
    product_graph(w, tmp_path / "product.onnx")
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert found["saturates"]
        np.testing.assert_array_equal(found["out"], x @ w)


# What is kept


@pytest.fixture
def kept(tmp_path: Path) -> OpenVinoBackend:
    return OpenVinoBackend(2, tmp_path / "kept")


def no_compiler(*_: object) -> None:
    raise AssertionError("compiled again")


def test_the_second_opening_compiles_nothing_and_gives_the_same(
    tiny: TinyBundle, kept: OpenVinoBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept.open(tiny.folder / GRAPH, 4).run(feeds(5))
    monkeypatch.setattr(openvino_network, "_compiled", no_compiler)
    second = kept.open(tiny.folder / GRAPH, 4)
    assert second.output.name == "out"
    np.testing.assert_array_equal(second.run(feeds(5)), first)
    np.testing.assert_allclose(first, computed(tiny, feeds(5)), rtol=0, atol=1e-5)


def test_a_network_of_another_graph_or_batch_is_not_taken(tiny: TinyBundle, kept: OpenVinoBackend, tmp_path: Path) -> None:
    kept.open(tiny.folder / GRAPH, 4)
    exchanged = shutil.copy(tiny.folder / "graphs/onnxruntime/w4a8.onnx", tmp_path / "fp32.onnx")
    out = kept.open(Path(exchanged), 4).run(feeds(4))
    np.testing.assert_allclose(out, tiny.networks["w4a8"](feeds(4)["sample"], 321, feeds(4)["class_labels"]), rtol=0, atol=1e-5)
    out = kept.open(tiny.folder / GRAPH, 6).run(feeds(6))
    np.testing.assert_allclose(out, computed(tiny, feeds(6)), rtol=0, atol=1e-5)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["fp32.compiled"]


def test_a_network_of_other_weights_is_not_taken_wherever_the_graph_has_them_from(
    tiny: TinyBundle, kept: OpenVinoBackend, tmp_path: Path
) -> None:
    """Pieces of a network read the weights of the whole one, which lie in a file of its name."""
    for name in ("fp32", "w4a8"):
        model = onnx.load(tiny.folder / f"graphs/onnxruntime/{name}.onnx")
        onnx.save(model, tmp_path / "body.onnx", save_as_external_data=True, location="whole.onnx.data", size_threshold=0)
        out = kept.open(tmp_path / "body.onnx", 2).run(feeds(2))
        np.testing.assert_allclose(out, tiny.networks[name](feeds(2)["sample"], 321, feeds(2)["class_labels"]), rtol=0, atol=1e-5)
        (tmp_path / "whole.onnx.data").unlink()


@pytest.mark.parametrize("damage", [lambda content: content[:-400] + bytes([content[-400] ^ 1]) + content[-399:], lambda _: b"", None])
def test_a_damaged_file_is_made_again(tiny: TinyBundle, kept: OpenVinoBackend, tmp_path: Path, damage: Any) -> None:
    file = tmp_path / "kept" / "fp32.compiled"
    kept.open(tiny.folder / GRAPH, 4)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage(whole))
    np.testing.assert_allclose(kept.open(tiny.folder / GRAPH, 4).run(feeds(4)), computed(tiny, feeds(4)), rtol=0, atol=1e-5)
    assert len(file.read_bytes()) == len(whole)


def test_where_nothing_can_be_kept_it_runs_all_the_same(tiny: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file in the place of the folder")
    engine = OpenVinoBackend(2, tmp_path / "kept").open(tiny.folder / GRAPH, 2)
    np.testing.assert_allclose(engine.run(feeds(2)), computed(tiny, feeds(2)), rtol=0, atol=1e-5)


# Errors


@pytest.mark.parametrize("content", [b"", b"not a graph", None], ids=["empty", "other", "truncated"])
def test_graph_that_the_runtime_refuses_is_one_error_with_its_path(tiny: TinyBundle, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes((tiny.folder / GRAPH).read_bytes()[:-50] if content is None else content)
    with pytest.raises(PtqdError, match="OpenVINO refuses the graph") as caught:
        OpenVinoEngine(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


def test_graph_whose_output_has_no_batch_is_refused(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axis"], ["out"])], "sum", [x], [out], [numpy_helper.from_array(np.array([0]), "axis")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "sum.onnx")
    with pytest.raises(PtqdError, match="OpenVINO refuses the graph"):
        OpenVinoEngine(tmp_path / "sum.onnx", threads=1, batch=3)


def test_runtime_that_is_not_installed_is_a_missing_backend(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_network._core.cache_clear()
    openvino_network.sums_saturate.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingBackendError, match=r"pip install 'ptqd-export\[openvino\]'") as caught:
        OpenVinoEngine(tiny.folder / GRAPH)
    assert caught.value.exit_code == 3


def test_a_call_that_fails_is_one_error(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(tiny.folder / GRAPH)
    monkeypatch.setattr(engine, "_rows", 2)  # the network takes one
    with pytest.raises(PtqdError, match=r"fp32 on OpenVINO failed"):
        engine.run(feeds(2))
