"""Where a network is cut, on graphs written by hand; that the pieces compute what the whole does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from calib.quantizers.rules.placement import PLACEMENTS
from engines.networks.conditioning import class_labels
from engines.samplers import NoiseSchedule
from ptqd_export.graph.passes.embedding_cut import cut_embeddings
from ptqd_export.graph.trace import lower, trace
from ptqd_export.models.base import Adapter, LoadedModel

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array

    Run = Callable[..., Array]

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'
RNG = np.random.default_rng(0)
X, TIME, LABELS = RNG.normal(size=(3, 4, 2)).astype(np.float32), np.array([1, 2, 3], dtype=np.float32), np.array([1, 0, 1])
WEIGHTS = {
    "wide": RNG.normal(size=(1, 6)).astype(np.float32),
    "deep": RNG.normal(size=(6, 4)).astype(np.float32),
    "table": RNG.normal(size=(2, 6)).astype(np.float32),
    "last": np.array([-1]),
    "column_shape": np.array([-1, 1, 1]),
}


def network(body: str, inputs: str = "float[batch, 4, 2] sample, float[batch] timestep") -> ir.Model:
    """A graph of these nodes; of some values it says the shape."""
    declared = "float[batch, 1] column, float[batch, 6] hidden, float[batch, 6] h2, float[batch, 6] vector, float[batch, 4] deeper"
    model = onnx.parser.parse_model(f"{HEADER} whole ({inputs}) => (float[batch, 4, 2] out) <{declared}> {{ {body} }}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items())
    return ir.from_proto(model)


TIME_ONLY = """
    column = Unsqueeze(timestep, last)
    hidden = Gemm(column, wide)
    h2 = Tanh(hidden)
    deeper = Gemm(h2, deep)
    plane = Unsqueeze(deeper, last)
    out = Add(sample, plane)
"""


def inputs_of(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.inputs]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_what_depends_on_the_timestep_is_cut_off_and_the_pieces_compute_the_same(run_graph: Run) -> None:
    whole = network(TIME_ONLY)
    cut = cut_embeddings(whole)
    assert cut is not None
    assert inputs_of(cut.body) == ["sample", "embedding_0"]
    assert inputs_of(cut.embeddings["embedding_0"]) == ["timestep"]
    assert "Gemm" not in operators(cut.body)
    given = run_graph(cut.embeddings["embedding_0"], {"timestep": TIME})
    assert given.shape == (3, 4)
    expected = run_graph(whole, {"sample": X, "timestep": TIME})
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": X, "embedding_0": given}), expected)


def test_the_network_itself_is_left_as_it_was() -> None:
    whole = network(TIME_ONLY)
    before = ir.to_proto(whole).SerializeToString(deterministic=True)
    assert cut_embeddings(whole) is not None
    assert ir.to_proto(whole).SerializeToString(deterministic=True) == before


def test_a_value_called_like_an_input_of_the_body_gives_way(run_graph: Run) -> None:
    whole = network(TIME_ONLY.replace("plane", "embedding_0"))
    cut = cut_embeddings(whole)
    assert cut is not None
    given = run_graph(cut.embeddings["embedding_0"], {"timestep": TIME})
    expected = run_graph(whole, {"sample": X, "timestep": TIME})
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": X, "embedding_0": given}), expected)


def test_values_are_cut_before_they_are_made_larger() -> None:
    """An Expand over positions stays in the body, whose input has a value for each channel alone."""
    whole = network(
        TIME_ONLY.replace("out = Add(sample, plane)", "size = Shape(sample) large = Expand(plane, size) out = Add(sample, large)")
    )
    cut = cut_embeddings(whole)
    assert cut is not None
    assert cut.embeddings["embedding_0"].graph.outputs[0].shape == ir.Shape(["batch", 4])
    assert "Expand" in operators(cut.body)


def test_batch_size_of_the_state_does_not_tie_the_embedding_to_it(run_graph: Run) -> None:
    ones = "count = Shape <start = 0, end = 1> (sample) one = ConstantOfShape <value = float[1] {1.0}> (count)"
    body = TIME_ONLY.replace("column = Unsqueeze(timestep, last)", f"{ones} times = Mul(timestep, one) column = Unsqueeze(times, last)")
    whole = network(body)
    cut = cut_embeddings(whole)
    assert cut is not None
    assert inputs_of(cut.embeddings["embedding_0"]) == ["timestep"]
    given = run_graph(cut.embeddings["embedding_0"], {"timestep": TIME})
    expected = run_graph(whole, {"sample": X, "timestep": TIME})
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": X, "embedding_0": given}), expected)


def test_values_lie_together_by_what_they_depend_on(run_graph: Run) -> None:
    inputs = "float[batch, 4, 2] sample, float[batch] timestep, int64[batch] class_labels"
    of_both = "vector = Gather(table, class_labels) h3 = Add(h2, vector) deeper = Gemm(h3, deep)"
    last = "most = ReduceMax <keepdims = 0> (h2, last) s2 = Add(sample, plane) m2 = Reshape(most, column_shape) out = Mul(s2, m2)"
    body = TIME_ONLY.replace("deeper = Gemm(h2, deep)", of_both).replace("out = Add(sample, plane)", last)
    whole = network(body, inputs)
    cut = cut_embeddings(whole)
    assert cut is not None
    depends = {name: inputs_of(graph) for name, graph in cut.embeddings.items()}
    assert depends == {"embedding_0": ["timestep", "class_labels"], "embedding_1": ["timestep"]}
    feeds = {"sample": X, "timestep": TIME, "class_labels": LABELS}
    given = {name: run_graph(graph, {key: feeds[str(key)] for key in depends[name]}) for name, graph in cut.embeddings.items()}
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": X, **given}), run_graph(whole, feeds))


@pytest.mark.parametrize(
    "body",
    [
        "column = Unsqueeze(timestep, last) plane = Unsqueeze(column, last) out = Add(sample, plane)",
        "flat = Flatten(sample) s = ReduceMean <keepdims = 0> (flat, last) t2 = Add(timestep, s) column = Unsqueeze(t2, last) "
        "hidden = Gemm(column, wide) deeper = Gemm(hidden, deep) plane = Unsqueeze(deeper, last) out = Add(sample, plane)",
    ],
    ids=["nothing weighted", "everything after the state"],
)
def test_network_with_nothing_to_gain_is_not_cut(body: str) -> None:
    assert cut_embeddings(network(body)) is None


def test_half_precision_values_come_back_in_their_type(run_graph: Run) -> None:
    body = TIME_ONLY.replace(
        "plane = Unsqueeze(deeper, last)", "small = Cast <to = 10> (deeper) wider = Unsqueeze(small, last) plane = Cast <to = 1> (wider)"
    )
    whole = network(body)
    small = next(node for node in whole.graph if node.op_type == "Cast").outputs[0]
    small.shape, small.type = ir.Shape(["batch", 4]), ir.TensorType(ir.DataType.FLOAT16)
    cut = cut_embeddings(whole)
    assert cut is not None
    given = run_graph(cut.embeddings["embedding_0"], {"timestep": TIME})
    assert given.dtype == np.float32
    expected = run_graph(whole, {"sample": X, "timestep": TIME})
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": X, "embedding_0": given}), expected)


class ClassAdapter(Adapter):
    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        out: Tensor = self.network(sample, timestep=timestep, class_labels=conditions[0], return_dict=False)[0]
        return out


@pytest.fixture(scope="module")
def transformer() -> ir.Model:
    """A DiT of two blocks, each of which embeds timestep and class for itself."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=5, norm_num_groups=1,
    )  # fmt: skip
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.1)
    adapter = ClassAdapter(network, ("class_labels",))
    model = LoadedModel("DiT", adapter, (2, 8, 8), class_labels(5, None), None, NoiseSchedule(clip_sample=False))
    graph = trace(model)
    lower(graph, PLACEMENTS["onnxruntime"])
    return graph


def test_blocks_of_a_transformer_get_what_they_modulate_with_from_one_embedding(transformer: ir.Model, run_graph: Run) -> None:
    cut = cut_embeddings(transformer)
    assert cut is not None
    (embedding,) = cut.embeddings.values()
    assert inputs_of(embedding) == ["timestep", "class_labels"]
    assert embedding.graph.outputs[0].shape == ir.Shape(
        ["batch", 16 * (2 * 6 + 2)]
    )  # shift, scale and gate twice a block, and once at the end
    feeds = {"sample": RNG.normal(size=(3, 2, 8, 8)).astype(np.float32), "timestep": 100 * TIME, "class_labels": np.array([4, 0, 2])}
    whole = run_graph(transformer, feeds, mode="fast")
    rows = [{name: feeds[name][row : row + 1] for name in ("timestep", "class_labels")} for row in range(3)]
    given = np.concatenate([run_graph(embedding, row, mode="fast") for row in rows])
    np.testing.assert_array_equal(run_graph(cut.body, {"sample": feeds["sample"], "embedding_0": given}, mode="fast"), whole)
    other = run_graph(cut.body, {"sample": feeds["sample"], "embedding_0": given[[0, 0, 2]]}, mode="fast")
    assert [bool((other[row] == whole[row]).all()) for row in range(3)] == [True, False, True]
