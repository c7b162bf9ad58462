"""Where networks are cut, on graphs written by hand, and that the two graphs of a cut compute what the whole does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from ptqd_export.graph.passes.ancestry import Ancestry
from ptqd_export.graph.passes.feature_cuts import CutGraphs, cut_features, find_cuts
from ptqd_export.graph.passes.token_streams import TokenStreams

Parse = Callable[[str], ir.Model]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 8)).astype(np.float32)

UNET = """
whole (float[batch, 2, 4, 4] sample, float[batch] timestep) => (float[batch, 2, 4, 4] out)
    <float[batch, 2, 4, 4] a, float[batch, 2, 4, 4] b, float[batch, 2, 4, 4] m, float[batch, 4, 4, 4] j, float[batch, 2, 4, 4] u,
     float[batch, 4, 4, 4] k> {
    w2 = Constant <value = float[2, 2, 1, 1] {0.5, -0.25, 1.0, 0.75}> ()
    w4 = Constant <value = float[2, 4, 1, 1] {0.5, 1.0, -1.0, 0.25, 1.0, -0.5, 0.125, 0.75}> ()
    a = Conv(sample, w2)
    b = Conv(a, w2)
    m = Conv(b, w2)
    j = Concat <axis = 1> (m, b)
    u = Conv(j, w4)
    k = Concat <axis = 1> (u, a)
    out = Conv(k, w4)
}
"""

TRANSFORMER = """
whole (float[batch, 4, 8] sample, float[batch] timestep) => (float[batch, 4, 8] out)
    <float[batch, 4, 8] h0, float[batch, 4, 8] f0, float[batch, 4, 8] h1, float[batch, 4, 8] f1, float[batch, 4, 8] h2> {
    h0 = MatMul(sample, w)
    f0 = MatMul(h0, w)
    h1 = Add(h0, f0)
    f1 = MatMul(h1, w)
    h2 = Add(f1, h1)
    out = MatMul(h2, w)
}
"""


STREAMS = """
whole (float[batch, 4, 8] sample, float[batch] timestep, float[batch, 2, 8] prompt) => (float[batch, 4, 8] out)
    <float[batch, 4, 8] i0, float[batch, 4, 8] i1, float[batch, 4, 8] i2, float[batch, 2, 8] t1, float[batch, 2, 8] t2,
     float[batch, 2, 8] t3, float[batch, 6, 8] s0, float[batch, 6, 8] s1, float[batch, 6, 8] s2> {
    sizes = Constant <value = int64[2] {2, 4}> ()
    i0 = MatMul(sample, w)
    j0 = Concat <axis = 1> (prompt, i0)
    a0 = MatMul(mix, j0)
    p0, q0 = Split <axis = 1> (a0, sizes)
    r0 = MatMul(p0, w)
    t1 = Add(prompt, r0)
    v0 = MatMul(q0, w)
    i1 = Add(i0, v0)
    f0 = MatMul(t1, w)
    t2 = Add(t1, f0)
    j1 = Concat <axis = 1> (t2, i1)
    a1 = MatMul(mix, j1)
    p1, q1 = Split <axis = 1> (a1, sizes)
    r1 = MatMul(p1, w)
    t3 = Add(t2, r1)
    v1 = MatMul(q1, w)
    i2 = Add(i1, v1)
    s0 = Concat <axis = 1> (t3, i2)
    f1 = MatMul(s0, w)
    s1 = Add(s0, f1)
    f2 = MatMul(s1, w)
    s2 = Add(s1, f2)
    p2, q2 = Split <axis = 1> (s2, sizes)
    out = MatMul(q2, w)
}
"""
"""Two streams that attend to each other twice and then are one, as in FLUX."""


def products(model: ir.Model) -> int:
    return sum(node.op_type in ("Conv", "MatMul") for node in model.graph)


def transformer(parse_graph: Parse, text: str = TRANSFORMER) -> ir.Model:
    model = parse_graph(text)
    for name, size in (("w", 8), ("mix", 6)):
        weight = ir.Value(name=name, const_value=ir.tensor(RNG.normal(size=(size, size)).astype(np.float32) / 3))
        old = {value for node in model.graph for value in node.inputs if value is not None and value.name == name}
        for value in old:
            value.replace_all_uses_with(weight)
        if old:
            model.graph.register_initializer(weight)
    return model


def engines(cut: CutGraphs, folder: Path) -> tuple[OnnxRuntimeEngine, OnnxRuntimeEngine]:
    for name, graph in (("full", cut.full), ("reuse", cut.reuse)):
        ir.save(graph, folder / f"{name}.onnx")
    return OnnxRuntimeEngine(folder / "full.onnx"), OnnxRuntimeEngine(folder / "reuse.onnx")


def feeds(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"sample": x, "timestep": np.full(len(x), 7, np.float32)}


def test_skips_are_counted_from_the_output(parse_graph: Parse) -> None:
    found = find_cuts(parse_graph(UNET))
    assert {name: str(value.name) for name, value in found.skips.items()} == {"skip_0": "u", "skip_1": "m"}
    assert found.described == "skip_0, skip_1"
    assert "skip_1" in found
    assert "skip_2" not in found
    assert "residual_0_0" not in found


@pytest.mark.parametrize(("name", "left"), [("skip_0", 2), ("skip_1", 4)])
def test_graphs_of_a_skip_compute_the_whole(parse_graph: Parse, tmp_path: Path, name: str, left: int) -> None:
    cut = cut_features(parse_graph(UNET), name)
    assert (products(cut.full), products(cut.reuse)) == (5, left)
    ir.save(parse_graph(UNET), tmp_path / "whole.onnx")
    x = RNG.normal(size=(3, 2, 4, 4)).astype(np.float32)
    full, reuse = engines(cut, tmp_path)
    out, kept = full.run_keeping(feeds(x))
    np.testing.assert_array_equal(out, OnnxRuntimeEngine(tmp_path / "whole.onnx").run(feeds(x)))
    np.testing.assert_array_equal(reuse.run({**feeds(x), "kept": kept}), out)
    assert np.abs(reuse.run({**feeds(x), "kept": 2 * kept}) - out).max() > 0.1


def test_blocks_of_a_transformer_are_counted_at_their_sums(parse_graph: Parse) -> None:
    found = find_cuts(transformer(parse_graph))
    assert [(str(total.name), str(before.name)) for total, before in found.streams.sums] == [("h1", "h0"), ("h2", "h1")]
    assert found.described == "residual_A_B with 0 <= A <= B < 2"
    assert "residual_0_1" in found
    assert "residual_1_0" not in found
    assert "residual_0_2" not in found


@pytest.mark.parametrize(("name", "left"), [("residual_0_0", 3), ("residual_1_1", 3), ("residual_0_1", 2)])
def test_graphs_of_a_range_keep_what_the_blocks_add(parse_graph: Parse, tmp_path: Path, name: str, left: int) -> None:
    model = transformer(parse_graph)
    cut = cut_features(model, name)
    assert (products(cut.full), products(cut.reuse)) == (4, left)
    ir.save(model, tmp_path / "whole.onnx")
    full, reuse = engines(cut, tmp_path)
    out, kept = full.run_keeping(feeds(X))
    np.testing.assert_allclose(out, OnnxRuntimeEngine(tmp_path / "whole.onnx").run(feeds(X)), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(reuse.run({**feeds(X), "kept": kept}), out)
    # with nothing added by the blocks, what stands before them goes on
    w = next(value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value is not None)
    if name == "residual_0_1":
        np.testing.assert_allclose(reuse.run({**feeds(X), "kept": 0 * kept}), X @ w @ w, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kept", "left"),
    [
        ("residual_1_2", {"i2": ("i1",), "t3": ("t1",)}, 7),
        ("residual_1_4", {"s1": ("t1", "i1")}, 6),
        ("residual_1_5", {"s2": ("t1", "i1")}, 5),
        ("residual_4_5", {"s2": ("s0",)}, 9),
    ],
)
def test_every_stream_that_is_needed_behind_a_range_is_kept(
    parse_graph: Parse, tmp_path: Path, name: str, kept: dict[str, tuple[str, ...]], left: int
) -> None:
    model = transformer(parse_graph, STREAMS)
    found = find_cuts(model)
    assert [str(total.name) for total, _ in found.streams.sums] == ["i1", "t2", "t3", "i2", "s1", "s2"]
    parts = {str(part.total.name): part.before for part in found.at(name)}
    assert {total: before and tuple(str(value.name) for value in before.values) for total, before in parts.items()} == kept
    cut = cut_features(model, name)
    assert (products(cut.full), products(cut.reuse)) == (11, left)
    given = {**feeds(X), "prompt": RNG.normal(size=(3, 2, 8)).astype(np.float32)}
    full, reuse = engines(cut, tmp_path)
    out, features = full.run_keeping(given)
    ir.save(model, tmp_path / "whole.onnx")
    np.testing.assert_allclose(out, OnnxRuntimeEngine(tmp_path / "whole.onnx").run(given), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(reuse.run({**given, "kept": features}), out)
    other = {**given, "sample": X[::-1].copy()}
    np.testing.assert_array_equal(reuse.run({**other, "kept": full.run_keeping(other)[1]}), full.run(other))
    assert np.abs(reuse.run({**other, "kept": features}) - full.run(other)).max() > 1e-3


def test_range_that_begins_before_a_stream_does_is_no_cut(parse_graph: Parse) -> None:
    found = find_cuts(transformer(parse_graph, STREAMS))
    assert "residual_0_2" not in found
    assert "residual_0_5" not in found
    assert found.proposed == ("residual_1_4", "residual_2_3")


def test_streams_of_blocks_that_take_the_sum_before_are_found_without_a_search(parse_graph: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for every sum is slow in a network of a hundred blocks."""
    text = "a = Tanh(sample) h1 = Add(sample, a) b = Tanh(h1) h2 = Add(h1, b) c = Tanh(h2) h3 = Add(h2, c)"
    graph = parse_graph(f"g (float[batch, 2, 4] sample) => (float[batch, 2, 4] h3) {{ {text} }}").graph
    adds = [node for node in graph if node.op_type == "Add"]
    sums = tuple((node.outputs[0], before) for node in adds if (before := node.inputs[0]) is not None)
    streams = TokenStreams(graph, Ancestry(graph), sums)
    searched = list[str]()
    depends = Ancestry.depends

    def counted(self: Ancestry, value: ir.Value, on: ir.Value) -> bool:
        searched.append(f"{value.name} from {on.name}")
        return depends(self, value, on)

    monkeypatch.setattr(Ancestry, "depends", counted)
    assert {str(part.total.name) for part in streams.between(0, 2)} == {"h3"}
    assert searched == []


def test_network_without_skips_and_blocks_has_no_cuts(parse_graph: Parse) -> None:
    found = find_cuts(parse_graph("g (float[batch, 2, 4] sample) => (float[batch, 2, 4] out) { out = Tanh(sample) }"))
    assert found.described.startswith("none")
