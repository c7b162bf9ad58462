"""Graphs with a fixed batch: freed where that is sound, and proven row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.errors import PtqdError
from ptqd_export.models.onnx_graph.onnx_model import load_onnx
from ptqd_export.plan.graph_section import GraphSection
from tests.ptqd_export.models.onnx_graph.onnx_graphs import Interface, exported, graph_file, node, random

SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0}


def load(path: Path, **section: Any) -> Any:
    return load_onnx(path, GraphSection.model_validate({"schedule": {}, **section}), path.parent, None, None)


def hidden(path: Path, target: list[int], back: list[int], middle: str = "Softmax") -> Path:
    """A network of a fixed batch of 1, with a constant Reshape to `target` and one back."""
    nodes = [
        node("Reshape", ["x", "target"], "a"),
        node(middle, "a", "b"),
        node("Reshape", ["b", "back"], "c"),
        node("Add", ["c", "t"], "d"),
        node("Conv", ["d", "conv.weight"], "out"),
    ]
    constants = {"target": np.array(target), "back": np.array(back), "conv.weight": random(4, 4, 1, 1)}
    return graph_file(path, nodes, {"x": ("FLOAT", [1, 4, 2, 4]), "t": ("FLOAT", [1, 1, 1, 1])}, constants, output=("out", [1, 4, 2, 4]))


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_exported_batch_of_one_is_freed(tmp_path: Path, dynamo: bool) -> None:
    path = tmp_path / "g.onnx"
    network = exported(path, opset=18 if dynamo else 17, dynamo=dynamo, fixed=True)
    np.savez(tmp_path / "c.npz", level=np.array([0.0, 1.0], np.float32))
    model = load_onnx(path, GraphSection.model_validate({"schedule": SIGMAS}), tmp_path, None, tmp_path / "c.npz")
    assert model.adapter.network.mends
    inputs = torch.randn(5, 2, 8, 8), torch.linspace(0.1, 9.0, 5), torch.linspace(0, 1, 5)
    with torch.no_grad():
        np.testing.assert_allclose(model.adapter.network(*inputs).numpy(), network(*inputs).numpy(), atol=1e-5)


@pytest.mark.parametrize(("target", "back"), [([1, 8, 4], [1, 4, 2, 4]), ([8, 4], [1, 4, 2, 4]), ([1, -1, 4], [1, 4, 2, -1])])
def test_a_batch_that_hides_in_a_reshape_is_found(tmp_path: Path, target: list[int], back: list[int]) -> None:
    """Also where -1 would take the rows of the batch for tokens."""
    model = load(hidden(tmp_path / "g.onnx", target, back), time="t", state="x")
    assert model.example_inputs(3)[0].shape == (3, 4, 2, 4)
    assert {step.shape[0] for step in model.adapter.network.mends.values()} == {-1}


def test_parts_of_a_split_are_freed(tmp_path: Path) -> None:
    """Queries, keys and values of one layer, each reshaped to the heads of a batch of 1; a target may be computed in part."""
    inputs: dict[str, Interface] = {"x": ("FLOAT", [1, 2, 5, 8]), "t": ("FLOAT", [1])}
    nodes = [
        node("MatMul", ["x", "qkv.weight"], "y"),
        node("Split", "y", ["q", "k", "v"], axis=-1, num_outputs=3),
        node("Shape", "x", "s", start=1, end=2),
        node("Concat", ["one", "s", "rest"], "target", axis=0),
        *(node("Reshape", [name, "target"], f"{name}h") for name in "qkv"),
        node("Mul", ["qh", "kh"], "a"),
        node("Add", ["a", "vh"], "b"),
        node("Reshape", ["b", "back"], "c"),
        node("Add", ["c", "t"], "out"),
    ]
    constants = {"qkv.weight": random(8, 24), "one": np.array([1]), "rest": np.array([20, 2]), "back": np.array([1, 2, 5, 8])}
    path = graph_file(tmp_path / "g.onnx", nodes, inputs, constants, output=("out", [1, 2, 5, 8]))
    model = load(path, time="t", state="x")
    assert len(model.adapter.network.mends) == 5  # and the time, one number for a batch of 1, which is added to the state as it is


def test_a_token_that_is_joined_to_every_sample_is_repeated(tmp_path: Path) -> None:
    nodes = [
        node("Concat", ["token", "x"], "y", axis=1),
        node("Reshape", ["y", "flat"], "z"),
        node("MatMul", ["z", "w"], "m"),
        node("Reshape", ["m", "back"], "n"),
        node("Slice", ["n", "begin", "end", "axis"], "s"),
        node("Add", ["s", "t"], "out"),
    ]
    constants = {"token": random(1, 1, 2, 4), "flat": np.array([1, 40]), "w": random(40, 40), "back": np.array([1, 5, 2, 4])}
    constants |= {"begin": np.array([1]), "end": np.array([5]), "axis": np.array([1])}
    inputs: dict[str, Interface] = {"x": ("FLOAT", [1, 4, 2, 4]), "t": ("FLOAT", [1])}
    network = load(
        graph_file(tmp_path / "g.onnx", nodes, inputs, constants, output=("out", [1, 4, 2, 4])), time="t", state="x"
    ).adapter.network
    x = torch.randn(3, 4, 2, 4)
    one = torch.cat([network(x[row : row + 1], torch.zeros(1)) for row in range(3)])
    np.testing.assert_allclose(network(x, torch.zeros(3)).numpy(), one.numpy(), atol=1e-5)


def test_a_sum_over_the_batch_is_refused(tmp_path: Path) -> None:
    """Rows that mix cannot be told apart by rule; the comparison with the graph finds them."""
    nodes = [node("ReduceMean", ["x", "axes"], "m"), node("Add", ["x", "m"], "d"), node("Add", ["d", "t"], "out")]
    path = graph_file(
        tmp_path / "g.onnx",
        nodes,
        {"x": ("FLOAT", ["b", 4, 2, 4]), "t": ("FLOAT", ["b", 1, 1, 1])},
        {"axes": np.array([0])},
        output=("out", ["b", 4, 2, 4]),
    )
    with pytest.raises(PtqdError, match="does not compute what it computes for one sample"):
        load(path, time="t", state="x")


def test_a_batch_that_cannot_be_freed_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "x", "y", perm=[3, 1, 2, 0]),
        node("MatMul", ["y", "w"], "z"),
        node("Transpose", "z", "v", perm=[3, 1, 2, 0]),
        node("Add", ["v", "t"], "out"),
    ]
    path = graph_file(
        tmp_path / "g.onnx", nodes, {"x": ("FLOAT", [1, 4, 2, 4]), "t": ("FLOAT", [1])}, {"w": random(1, 1)}, output=("out", [1, 4, 2, 4])
    )
    with pytest.raises(PtqdError, match="The graph fixes the batch, and this cannot be undone") as caught:
        load(path, time="t", state="x")
    assert "MatMul" in str(caught.value)


@pytest.mark.parametrize("shape", [[], [1], ["steps"], ["batch", 1]])
def test_one_timestep_for_all_samples_becomes_one_for_each(tmp_path: Path, shape: list[Any]) -> None:
    """As diffusers' networks embed it: expanded to the batch, times frequencies, through a layer."""
    nodes = [
        node("Cast", "timestep", "f", to=1),
        node("Reshape", ["f", "one"], "g") if shape != ["batch", 1] else node("Identity", "f", "g"),
        node("Shape", "x", "s"),
        node("Gather", ["s", "zero"], "b"),
        node("Unsqueeze", ["b", "zeros"], "bb"),
        node("Mul", ["g", "freq"], "angle"),
        node("Sin", "angle", "sin"),
        node("Gemm", ["sin", "time.weight", "time.bias"], "e"),
        node("Unsqueeze", ["e", "last"], "v"),
        node("Add", ["x", "v"], "out"),
    ]
    constants = {
        "one": np.array([-1, 1]), "zero": np.array(0), "zeros": np.array([0]), "last": np.array([2, 3]), "freq": random(1, 6),
        "time.weight": random(6, 4),
        "time.bias": random(4),
    }  # fmt: skip
    path = graph_file(
        tmp_path / "g.onnx",
        nodes,
        {"x": ("FLOAT", ["batch", 4, 2, 4]), "timestep": ("INT64", shape)},
        constants,
        output=("out", ["batch", 4, 2, 4]),
    )
    model = load(path)
    x, t = torch.zeros(3, 4, 2, 4), torch.tensor([1.0, 500.0, 7.0])
    expected = torch.sin(t[:, None] * torch.from_numpy(random(1, 6))) @ torch.from_numpy(random(6, 4)) + torch.from_numpy(random(4))
    np.testing.assert_allclose(model.adapter(x, t)[:, :, 0, 0].numpy(), expected.numpy(), atol=1e-5)


def test_a_number_that_meets_a_vector_first_is_freed(tmp_path: Path) -> None:
    """Frequencies before the batch: `sin(t * freq)` is a vector for one timestep, and a matrix for several."""
    nodes = [
        node("Mul", ["t", "freq"], "a"),
        node("Sin", "a", "s"),
        node("Cos", "a", "c"),
        node("Concat", ["s", "c"], "e", axis=0),
        node("Unsqueeze", ["e", "zero"], "row"),
        node("Gemm", ["row", "time.weight"], "g"),
        node("Unsqueeze", ["g", "last"], "v"),
        node("Add", ["x", "v"], "out"),
    ]
    constants = {"freq": random(3), "zero": np.array([0]), "last": np.array([2, 3]), "time.weight": random(6, 4)}
    path = graph_file(
        tmp_path / "g.onnx", nodes, {"x": ("FLOAT", ["b", 4, 2, 4]), "t": ("FLOAT", [])}, constants, output=("out", ["b", 4, 2, 4])
    )
    model = load(path)
    t = torch.tensor([1.0, 2.0, 7.0])
    angle = t[:, None] * torch.from_numpy(random(3))
    expected = torch.cat([angle.sin(), angle.cos()], 1) @ torch.from_numpy(random(6, 4))
    np.testing.assert_allclose(model.adapter(torch.zeros(3, 4, 2, 4), t)[:, :, 1, 2].numpy(), expected.numpy(), atol=1e-5)
