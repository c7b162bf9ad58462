"""Preparations change no output, on real networks; and what is quantized behind them still matches its oracle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from calib.quantizers.preparation.channel_scaling import ScalableChannels, scaled_parameters
from calib.quantizers.rules.placement import PLACEMENTS
from calib.quantizers.rules.precision import Precision
from calib.walk.activation_states import States
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.networks.conditioning import class_labels
from engines.networks.lora.lora_changes import FloatWeights
from engines.networks.lora.prepared_weights import PreparedWeights
from engines.samplers import NoiseSchedule
from engines.untrusted.stored_tensors import StoredTensors
from ptqd_export.graph.passes.split_concatenations import SplitConcatenations, concatenated_inputs
from ptqd_export.graph.reading.graph_layers import weighted_nodes
from ptqd_export.graph.reading.parameter_values import ParameterValues
from ptqd_export.graph.reading.scalable_channels import scalable_channels
from ptqd_export.graph.trace import check_parity, lower, trace
from ptqd_export.models.base import Adapter, LoadedModel
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.finish.assemble import Parts, assemble
from ptqd_export.stages.network.preparation import Preparation, make_preparation, prepared_model
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_observations, make_observations
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.recorder import Recorder
from tests.ptqd_export.stages.whole_builds import FinishedStages

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

SPLIT = {"split_concatenations": True}
SCALED = {"channel_scaling": 0.5}
ROTATED = {"rotation": "hadamard"}


class Prepared:
    """The stage `prepare` run on the finished `trace` and `states` of a build."""

    def __init__(self, built: Built, folder: Path, **quantization: Any) -> None:
        self.built = built
        plan = built.plan_file.plan.model_dump(mode="json")
        self.context = BuildContext(built.resumed_in(folder / "bundle", quantization=plan["quantization"] | quantization))
        self.folder, self.states = folder / "prepare", built.stage("states")
        self.folder.mkdir()
        make_preparation(self.context, built.stage("trace"), self.states, self.folder, Recorder())

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "preparation.json").read_text())
        return content

    @property
    def layers(self) -> set[str]:
        return {layer.name for layer in TracedNetwork.load(self.folder).layers}


Prepare = Callable[..., Prepared]


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    """A function that prepares the network of a build, once with the same options."""
    made: dict[str, Prepared] = {}

    def once(built: Built, **quantization: Any) -> Prepared:
        key = f"{built.folder} {quantization}"
        if key not in made:
            made[key] = Prepared(built, tmp_path_factory.mktemp("prepared"), **quantization)
        return made[key]

    return once


@pytest.fixture(
    params=[("class_build", SPLIT), ("class_build", SCALED), ("class_build", ROTATED), ("cross_build", SPLIT | SCALED | ROTATED)],
    ids=["split", "scaled", "rotated", "all"],
)
def prepared(request: pytest.FixtureRequest, prepare: Prepare) -> Prepared:
    name, options = request.param
    return prepare(request.getfixturevalue(name), **options)


def _outputs(model: LoadedModel, graph: Path) -> tuple[Array, Array]:
    """Of torch and of the graph, at states that nothing was fitted to."""
    inputs = model.example_inputs(5)
    names = ("sample", "timestep", *model.adapter.conditions)
    found = OnnxRuntimeEngine(graph, threads=1).run({name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    with torch.no_grad():
        return model.adapter(*inputs).numpy(), found


def test_prepared_graph_and_network_compute_what_full_precision_computes(prepared: Prepared) -> None:
    expected, graph = _outputs(prepared.context.model, prepared.folder / "fp32.onnx")
    network, _ = _outputs(prepared_model(prepared.context, prepared.folder), prepared.folder / "fp32.onnx")
    for found in (graph, network):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_quantized_graph_matches_the_oracle_of_the_prepared_network(prepared: Prepared, tmp_path: Path) -> None:
    (seen := tmp_path / "seen").mkdir()
    (quantized := tmp_path / "quantized").mkdir()
    everywhere = prepared.context.groups(range(prepared.context.table.steps))
    make_observations(prepared.context, prepared.folder, prepared.states, everywhere, seen, Recorder())
    precision = Precision.parse("w4a8")
    sources = Sources(prepared.folder, prepared.states, seen)
    make_quantized_graph(prepared.context, precision, sources, None, quantized, Recorder())
    record = json.loads((quantized / "precision.json").read_text())
    assert {layer["name"] for layer in record["layers"]} == prepared.layers
    assert record["verification"]["exact_match"] > record["verification"]["noise"] > 10


def test_layers_of_one_tensor_share_a_rotation_that_counts_once(class_build: Built, prepare: Prepare) -> None:
    prepared = prepare(class_build, **ROTATED)
    rotated, network = prepared.record["rotated"], TracedNetwork.load(prepared.folder)
    (query,) = {layer.source for layer in network.layers if layer.name.endswith(("to_q", "to_k", "to_v")) and "mid_block" in layer.name}
    graph = ir.load(prepared.folder / "fp32.onnx").graph
    matrices = [name for name in graph.initializers if name.startswith("rotation.") and "shape" not in name]
    assert len([use for name in matrices for use in graph.initializers[name].uses()]) == len(
        {layer.source for layer in network.layers if layer.name in rotated}
    )
    first = next(layer for layer in network.layers if layer.name == query)
    assert network.added >= first.macs // first.shape[0] * rotated[query] > 0
    assert network.macs == class_build.network.macs


def test_rotations_fold_into_the_values_of_attention(class_build: Built, prepare: Prepare) -> None:
    """The weights of the values do it for the output layer, and the graph has no node more."""
    prepared = prepare(class_build, rotation="folded")
    (folded,) = [one for one in prepared.record["folded"] if "mid_block" in one["producer"]]
    assert folded["producer"].endswith("to_v")
    assert folded["consumers"] == [folded["producer"].replace("to_v", "to_out.0")]
    assert prepared.record["rotated"] == {}
    assert TracedNetwork.load(prepared.folder).added == 0
    graphs = [ir.load(folder / "fp32.onnx").graph for folder in (prepared.folder, class_build.stage("trace"))]
    assert len(graphs[0]) == len(graphs[1])


def test_every_skip_connection_is_split(class_build: Built, prepare: Prepare) -> None:
    prepared = prepare(class_build, **SPLIT)
    ups = [f"up_blocks.{block}.resnets.{resnet}" for block in range(2) for resnet in range(2)]
    split = {f"{up}.{layer}" for up in ups for layer in ("conv1", "conv_shortcut")}
    assert set(prepared.record["split"]) == split
    assert prepared.record["split"]["up_blocks.0.resnets.1.conv1"] == [32, 16]
    parts = {f"{name}.parts.{i}" for name in split for i in range(2)}
    assert prepared.layers == {layer.name for layer in class_build.network.layers} - split | parts
    nodes = Counter(node.op_type for node in ir.load(prepared.folder / "fp32.onnx").graph)
    assert nodes["Split"] == 4  # the shortcuts read the parts themselves


def test_multiply_accumulates_are_shared_out(class_build: Built, prepare: Prepare) -> None:
    whole, parts = class_build.network, TracedNetwork.load(prepare(class_build, **SPLIT).folder)
    assert parts.macs == whole.macs
    assert sum(layer.macs for layer in parts.layers) == sum(layer.macs for layer in whole.layers)
    of = {layer.name: layer.macs for layer in parts.layers}
    assert of["up_blocks.0.resnets.1.conv1.parts.0"] == 2 * of["up_blocks.0.resnets.1.conv1.parts.1"]  # 32 and 16 channels


def test_the_run_time_prepares_weights_as_the_build_did(prepared: Prepared) -> None:
    graphs = (prepared.built.stage("trace"), prepared.folder)
    before, after = (FloatWeights(StoredTensors(folder / "fp32.onnx")) for folder in graphs)
    again = PreparedWeights.read(prepared.record)
    found = {part: weight for layer in before.shapes for part, weight in again.parts(layer, before[layer])}
    assert found.keys() == after.shapes.keys()
    assert any(name not in before.shapes or np.abs(before[name] - weight).max() > 0.01 for name, weight in found.items())
    for name, weight in found.items():
        np.testing.assert_allclose(weight, after[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_layer_that_the_plan_keeps_in_float_stays_whole(class_build: Built, prepare: Prepare) -> None:
    prepared = prepare(class_build, **SPLIT, keep_float=["*.conv_shortcut"])
    assert all(name.endswith(".conv1") for name in prepared.record["split"])
    assert "up_blocks.0.resnets.0.conv_shortcut" in prepared.layers


def test_what_was_scaled_is_listed_with_its_largest_factor(cross_build: Built, prepare: Prepare) -> None:
    prepared = prepare(cross_build, **SCALED)
    block = "mid_block.attentions.0.transformer_blocks.0"
    found = {one["producer"]: one for one in prepared.record["scaled"] if one["producer"].startswith("mid_block")}
    assert {producer.removeprefix(f"{block}."): one["consumers"] for producer, one in found.items()} == {
        "mid_block.attentions.0.norm": ["mid_block.attentions.0.proj_in"],
        "norm1": [f"{block}.attn1.to_{letter}" for letter in "kqv"],
        "attn1.to_v": [f"{block}.attn1.to_out.0"],
        "norm2": [f"{block}.attn2.to_q"],
        "attn2.to_v": [f"{block}.attn2.to_out.0"],
        "norm3": [f"{block}.ff.net.0.proj"],
        "ff.net.0.proj": [f"{block}.ff.net.2"],
    }
    factors = Preparation.load(prepared.folder).scaled
    for one, (channels, values) in zip(prepared.record["scaled"], factors, strict=True):
        assert one["producer"] == channels.producer
        assert one["largest_factor"] == pytest.approx(values.max().item())
        assert 1 < values.max() < 64


def test_scaling_evens_out_the_channels(cross_build: Built, prepare: Prepare) -> None:
    """With exponent 1 all channels that a layer reads have one range, as far as the states show."""
    prepared = prepare(cross_build, channel_scaling=1.0)
    name = "mid_block.attentions.0.proj_in"
    largest: list[Tensor] = []
    for model in (prepared.context.model, prepared_model(prepared.context, prepared.folder)):
        with (
            model.adapter.network.get_submodule(name).register_forward_pre_hook(
                lambda _module, args: largest.append(args[0].abs().amax((0, 2, 3)))
            ),
            torch.no_grad(),
        ):
            states = States.load(prepared.states / "states.npz")
            conditioning = model.conditioning
            assert conditioning is not None
            feeds = [torch.from_numpy(value) for value in conditioning.feeds(states.rows, guided=True).values()]
            sample, timestep = (torch.from_numpy(np.concatenate([value] * 2)) for value in (states.samples, states.timesteps))
            model.adapter(sample, timestep, *feeds)
    before, after = (float(x.max() / x.min()) for x in largest)
    assert before > 1.2
    assert after == pytest.approx(1, abs=1e-3)


def test_nothing_found_is_a_preparation_that_does_nothing(class_build: Built, prepare: Prepare) -> None:
    prepared = prepare(class_build, **SPLIT, keep_float=["up_blocks.*"])
    assert prepared.record == {"split": {}, "scaled": [], "rotated": {}, "folded": []}
    assert prepared.layers == {layer.name for layer in class_build.network.layers}


def test_what_was_done_travels_with_the_bundle(cross_build: Built, prepare: Prepare) -> None:
    prepared = prepare(cross_build, **SPLIT, **SCALED, **ROTATED)
    quantized = {precision.name: prepared.built.stage(f"quantize-{precision.name}") for precision in prepared.context.quantized_precisions}
    graphs = {"fp32": prepared.built.stage("trace"), **quantized}
    versions = {name: {"onnx": "1.23.2"} for name in graphs}
    walked = prepared.built.stage("statistics")
    parts = Parts(
        graphs,
        prepared.folder,
        decoder=None,
        preview=None,
        encoder=None,
        control=None,
        text=None,
        walked=walked,
        chosen=None,
        pictures=None,
        versions=versions,
    )
    assemble(prepared.context, prepared.context.plan_file.output_path, parts)
    bundle = Bundle.open(prepared.context.plan_file.output_path)
    assert {name: record.versions for name, record in bundle.manifest.precisions.items()} == versions
    assert bundle.path("statistics/onnxruntime/preparation.json").read_bytes() == (prepared.folder / "preparation.json").read_bytes()


def test_network_of_the_trace_is_the_models_own(class_build: Built) -> None:
    assert prepared_model(class_build.context, class_build.stage("trace")) is class_build.context.model


# A transformer with adaptive norms, and any factors


class DiTAdapter(Adapter):
    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        out: Tensor = self.network(sample, timestep=timestep, class_labels=conditions[0], return_dict=False)[0]
        return out


@pytest.fixture(scope="module")
def dit() -> LoadedModel:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=2, out_channels=2, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    return LoadedModel("DiT", DiTAdapter(network, ("class_labels",)), (2, 8, 8), class_labels(9, 9), 9, NoiseSchedule(clip_sample=False))


def test_transformer_scales_values_and_leaves_adaptive_norms_alone(dit: LoadedModel, tmp_path: Path) -> None:
    graph = trace(dit)
    lower(graph, PLACEMENTS["onnxruntime"])
    layers = [name for name in weighted_nodes(graph.graph) if ".emb." not in name]
    assert concatenated_inputs(graph.graph, layers) == {}
    found = scalable_channels(graph.graph, layers)
    blocks = [f"transformer_blocks.{i}.attn1" for i in range(2)]
    assert found == [ScalableChannels(f"{block}.to_v", 0, (f"{block}.to_out.0",)) for block in blocks]
    _check_with_random_factors(dit, graph, found, {}, tmp_path)


@pytest.mark.parametrize("name", ["class_build", "cross_build"])
def test_any_factors_preserve_the_function(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    built: Built = request.getfixturevalue(name)
    graph = ir.load(built.stage("trace") / "fp32.onnx")
    names = [layer.name for layer in built.network.layers if layer.role == "inner"]
    split = concatenated_inputs(graph.graph, names)
    found = scalable_channels(graph.graph, names)
    assert split
    assert len(found) >= 8
    _check_with_random_factors(built.context.model, graph, found, split, tmp_path)


def _check_with_random_factors(
    model: LoadedModel, graph: ir.Model, found: list[ScalableChannels], split: dict[str, tuple[int, ...]], folder: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [model.adapter.network.get_parameter(f"{channels.consumers[0]}.weight").shape[1] for channels in found]
    scaled = tuple((channels, 4 ** (2 * torch.rand(size, generator=generator) - 1)) for channels, size in zip(found, sizes, strict=True))
    prepared = Preparation(split, scaled).apply(model.adapter.network)
    SplitConcatenations(split)(graph)
    ParameterValues({name: value.numpy() for name, value in scaled_parameters(prepared, found).items()})(graph)
    ir.passes.common.RemoveUnusedNodesPass()(graph)
    ir.save(graph, folder / "prepared.onnx")
    assert check_parity(model, folder / "prepared.onnx") < 1e-4
    assert check_parity(model.with_network(prepared), folder / "prepared.onnx") < 1e-4
    moved = scaled[0][0].consumers[0]
    assert not torch.equal(prepared.get_parameter(f"{moved}.weight"), model.adapter.network.get_parameter(f"{moved}.weight"))


# In a build


def test_precisions_are_observed_on_their_own_steps(class_build: Built, tmp_path: Path) -> None:
    finished = FinishedStages()
    plan = class_build.plan_file.plan.model_dump(mode="json")
    plan_file = class_build.resumed_in(
        tmp_path / "bundle",
        precisions=["w8a8", "w4a8"],
        quantization=plan["quantization"] | SPLIT | SCALED | {"activation_steps": "used"},
        steps={"policy": "fixed", "precisions": ["w4a8", "fp32", "fp32", "w4a8"]},
    )
    run_build(plan_file, on_progress=finished)
    made = [stage.stage for stage in finished]
    assert made == [
        "trace",
        "states",
        "prepare",
        "observe-w4a8",
        "observe-w8a8",
        "quantize-w4a8",
        "quantize-w8a8",
        "statistics",
        "check",
        "pictures",
    ]
    stages = {stage: next((tmp_path / "bundle" / "local" / "stages").glob(f"{stage}-*")) for stage in made}
    table, states = class_build.context.table, States.load(class_build.stage("states") / "states.npz")
    for precision, steps in (("w4a8", [0, 3]), ("w8a8", [0, 1, 2, 3])):  # no step is w8a8's, so that it takes all
        largest = np.abs(states.at(table.timestep[steps]).samples).max()
        seen = load_observations(stages[f"observe-{precision}"])["conv_in.input"]
        assert max(-seen.low, seen.high) == pytest.approx(largest)
    bundle = Bundle.open(tmp_path / "bundle")
    traced, full = (ir.load(path).graph for path in (class_build.stage("trace") / "fp32.onnx", bundle.verified_graph("fp32")))
    assert [node.op_type for node in full] == [node.op_type for node in traced]
    assert full.initializers.keys() == traced.initializers.keys()
    for name, value in traced.initializers.items():
        np.testing.assert_array_equal(full.initializers[name].const_value, value.const_value)


def test_observing_in_bfloat16_sees_nearly_the_same(class_build: Built, tmp_path: Path) -> None:
    plan = class_build.plan_file.plan.model_dump(mode="json")
    context = BuildContext(class_build.resumed_in(tmp_path / "b", calibration=plan["calibration"] | {"dtype": "bfloat16"}))
    make_observations(context, class_build.stage("trace"), class_build.stage("states"), context.groups(range(4)), tmp_path, Recorder())
    found, expected = (load_observations(folder) for folder in (tmp_path, class_build.stage("observe")))
    assert found.keys() == expected.keys()
    name = "mid_block.resnets.0.conv1.input"
    assert found[name].values.dtype == torch.float32
    assert found[name].high == pytest.approx(expected[name].high, rel=0.03)
    assert found[name].high != expected[name].high


@pytest.mark.parametrize(
    ("listed", "w4a8", "w8a8"),
    [(["w4a8"], [0, 1, 2, 3], [0, 1, 2, 3]), (["w4a8", "w8a8", "w8a8", "fp32"], [0], [1, 2]), (None, [0, 1, 2, 3], [0, 1, 2, 3])],
)
def test_steps_of_a_precision(class_build: Built, tmp_path: Path, listed: list[str] | None, w4a8: list[int], w8a8: list[int]) -> None:
    steps = {"policy": "snr"} if listed is None else {"policy": "fixed", "precisions": listed}
    context = BuildContext(class_build.resumed_in(tmp_path / "b", steps=steps))
    assert [context.steps_of(Precision.parse(name)) for name in ("w4a8", "w8a8")] == [w4a8, w8a8]
