"""The graphs for TensorRT before its real parser and builder, which need no GPU; the builder runs in a child process, as it can crash."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common
from torch import Tensor

from calib.quantizers.attention.observed_attention import AttentionObserver
from calib.quantizers.observers import observe_activations
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import PLACEMENTS, HighPrecision, LayerOverrides
from calib.quantizers.rules.precision import AttentionForm, Precision
from calib.quantizers.scale_type import with_scales_in
from engines.networks.conditioning import class_labels
from engines.samplers import NoiseSchedule
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.half_precision import ToHalfPrecision
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
from ptqd_export.graph.reading.graph_layers import find_layers
from ptqd_export.graph.sizes.macs import count_macs
from ptqd_export.graph.trace import check_parity, lower, trace
from ptqd_export.models.base import Adapter, LoadedModel
from ptqd_export.models.load import load_model
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.precisions.quantized_attention_sites import AttentionSites
from tests.ptqd_export.models.tiny_transformers import PIPED, USUAL, model_section

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

TRT, DEFAULT = PLACEMENTS["tensorrt"], QuantizationSettings()

BUILDER = """
import sys
import tensorrt_rtx as trt

logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
for path in sys.argv[1:]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(path), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        rest = tuple(network.get_input(i).shape)[1:]
        profile.set_shape(network.get_input(i).name, *((batch, *rest) for batch in (1, 2, 4)))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    print(path, 0 if engine is None else engine.nbytes)
"""


def _built_sizes(paths: Iterable[Path]) -> list[int]:
    """Bytes of the engine of every graph, 0 where the builder refuses it."""
    done = subprocess.run([sys.executable, "-c", BUILDER, *map(str, paths)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(line.rpartition(" ")[2]) for line in done.stdout.splitlines()]


# What the parser understood


@dataclass
class Parsed:
    """A parsed network: for every layer with stored weights, by the name of its weight, what its inputs come from.

    Attributes:
        pairs: layers with a pair on the input and a dequantized weight.
        weights: layers with a dequantized weight alone.
        quantizers: QUANTIZE layers that a layer of `pairs` reads, and all of them.
        float_types: types that convolutions and matrix products compute in.
        quantized_types: those of what QUANTIZE layers give.
    """

    pairs: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    quantizers: set[str] = field(default_factory=set)
    dequantizers: set[str] = field(default_factory=set)
    products: list[tuple[Any, Any]] = field(default_factory=list)
    float_types: set[Any] = field(default_factory=set)
    quantized_types: set[Any] = field(default_factory=set)
    inputs: dict[str, Any] = field(default_factory=dict)
    output: Any = None


VIEWS = {trt.LayerType.SHUFFLE, trt.LayerType.UNSQUEEZE, trt.LayerType.IDENTITY, trt.LayerType.CAST}
"""What may lie between a weight and a matrix product: ranks are made equal, and floats in blocks turned and narrowed."""

QUANTIZES = {trt.LayerType.QUANTIZE, trt.LayerType.DYNAMIC_QUANTIZE}


def _parse(path: Path) -> Parsed:
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producer = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}

    def source(tensor: Any) -> Any:
        layer = producer.get(tensor.name)
        return source(layer.get_input(0)) if layer is not None and layer.type in VIEWS else layer

    parsed = Parsed(inputs={network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)})
    parsed.output = network.get_output(0).dtype
    for layer in layers:
        if layer.type in QUANTIZES:
            parsed.quantized_types.add(layer.get_output(0).dtype)
            parsed.quantizers.add(layer.name)
        if layer.type == trt.LayerType.DEQUANTIZE:
            parsed.dequantizers.add(layer.name)
        if layer.type in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY):
            _add(parsed, layer, source)
    return parsed


def _add(parsed: Parsed, layer: Any, source: Any) -> None:
    parsed.float_types.add(layer.get_output(0).dtype)
    sources: list[Any] = [source(layer.get_input(i)) if i < layer.num_inputs else None for i in (0, 1)]
    x, weight = sources
    pair = x is not None and x.type == trt.LayerType.DEQUANTIZE
    stored = source(weight.get_input(0)) if weight is not None and weight.type == trt.LayerType.DEQUANTIZE else None
    if pair and stored is not None and stored.type in QUANTIZES:
        quantizers = [source(one.get_input(0)) for one in sources]
        parsed.products.append((quantizers[0].get_output(0).dtype, quantizers[1].get_output(0).dtype))
        parsed.read |= {one.name for one in quantizers}
        parsed.dequantizers -= {x.name, weight.name}
        return
    if stored is None or stored.type != trt.LayerType.CONSTANT:
        assert not pair, f"{layer.name}: an int8 input and a float weight"
        return
    parsed.dequantizers -= {weight.name, *_scales(weight, source)}
    name = stored.get_output(0).name.partition(".weight.int")[0]
    (parsed.pairs if pair else parsed.weights).add(name)
    if pair:
        quantize = source(x.get_input(0))
        assert quantize.type in QUANTIZES
        parsed.read.add(quantize.name)
        parsed.dequantizers -= {x.name, *_scales(x, source)}


def _scales(dequantize: Any, source: Any) -> list[str]:
    """The layer that dequantizes the scales of 4-bit floats; empty for others."""
    scale = source(dequantize.get_input(1))
    return [scale.name] if scale is not None and scale.type == trt.LayerType.DEQUANTIZE else []


def _holds_the_plan(path: Path, layers: list[QuantizedLayer], float_type: Any, products: Collection[Any] = ()) -> Parsed:
    parsed = _parse(path)
    assert parsed.pairs == {layer.layer.name for layer in layers if layer.input is not None}
    assert parsed.weights == {layer.layer.name for layer in layers if layer.input is None}
    assert parsed.quantizers == parsed.read
    assert not parsed.dequantizers
    kind = {"fp8": trt.fp8, "nvfp4": trt.fp4, "nvfp4a8": trt.fp8, "mxfp8": trt.fp8}.get(path.stem.partition("-")[0], trt.int8)
    assert parsed.quantized_types == ({kind, *products} if parsed.pairs else set())
    assert parsed.float_types == {float_type}
    assert set(parsed.inputs.values()) <= {trt.float32, trt.int64}
    assert parsed.output == trt.float32
    return parsed


BUILDS = [
    ("class_trt_build", "float32", ["w8a8", "w4a8", "w4a4"]),
    ("cross_trt_build", "float16", ["fp8", "w8a8", "w4a4", "w4a16"]),
    pytest.param("digits_trt_build", "float16", ["w8a8", "w4a8", "w4a4"], marks=pytest.mark.slow),
]
"""The digits are a trained network with default settings; the others have all its operators and precisions, in both float types."""


@pytest.mark.parametrize(("name", "float_type", "precisions"), BUILDS, ids=["class", "cross", "digits"])
def test_every_layer_that_the_plan_quantizes_has_its_pairs_and_no_other_has(
    request: pytest.FixtureRequest, name: str, float_type: str, precisions: list[str]
) -> None:
    built: Built = request.getfixturevalue(name)
    for precision in precisions:
        layers = built.quantize(precision)
        parsed = _holds_the_plan(built.graph(precision), layers, getattr(trt, float_type))
        assert len(parsed.pairs) > (10 if precision != "w4a16" else -1)
        assert len(parsed.weights) > 5


@pytest.mark.parametrize(
    "name", ["class_trt_build", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cross_trt_build", "digits_trt_build"))]
)
def test_every_precision_builds(request: pytest.FixtureRequest, name: str) -> None:
    built: Built = request.getfixturevalue(name)
    graphs = sorted((built.folder / "graphs" / "tensorrt").glob("*.onnx"))
    assert {graph.stem for graph in graphs} == {"fp32", *built.context.plan.precisions}
    sizes = _built_sizes(graphs)
    assert len(sizes) == len(graphs)
    assert all(sizes)


def test_half_precision_network_computes_in_float16_alone(cross_trt_build: Built) -> None:
    parsed = _parse(cross_trt_build.graph("fp16"))
    assert (parsed.float_types, parsed.quantizers, parsed.output) == ({trt.float16}, set(), trt.float32)
    assert _parse(cross_trt_build.graph("fp32")).float_types == {trt.float32}


# A transformer, without a loader


class ClassAdapter(Adapter):
    """Calls a DiT with its labels."""

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        out: Tensor = self.network(sample, timestep=timestep, class_labels=conditions[0], return_dict=False)[0]
        return out


@pytest.fixture(scope="module")
def transformer() -> LoadedModel:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(2)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=2, out_channels=2, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=4, norm_num_groups=1,
    )  # fmt: skip
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.1)
    labels = class_labels(4, None, "class_labels")
    return LoadedModel("DiT", ClassAdapter(network, ("class_labels",)), (2, 8, 8), labels, None, NoiseSchedule(clip_sample=False))


def _traced(model: LoadedModel, folder: Path) -> ir.Model:
    graph = trace(model)
    lower(graph, TRT)
    save_graph(graph, folder / "fp32.onnx")
    check_parity(model, folder / "fp32.onnx")
    return graph


@pytest.fixture(scope="module")
def transformer_graph(transformer: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return _traced(transformer, tmp_path_factory.mktemp("transformer"))


class Quantized:
    """The layers of a network by precision, each found once, and their graphs."""

    def __init__(self, model: LoadedModel, traced: ir.Model, settings: QuantizationSettings = DEFAULT) -> None:
        network, layers = model.adapter.network, find_layers(traced.graph, count_macs(model))
        inputs, outputs = sorted({layer.source for layer in layers}), [layer.name for layer in layers]
        attention = AttentionObserver(network, 1)
        with observe_activations(network, inputs, outputs, 1) as seen, attention.run(), torch.no_grad():
            model.adapter(*model.example_inputs(16))
        self.sites = attention.sites
        self._traced, self._quantizer = traced, Quantizer(network, layers, seen | attention.seen, TRT, settings)
        self._found: dict[str, list[QuantizedLayer]] = {}

    def write(
        self, precision: str, high: HighPrecision, folder: Path, attention: AttentionForm = "float"
    ) -> tuple[Path, list[QuantizedLayer]]:
        if precision not in self._found:
            self._found[precision] = self._quantizer.quantize(Precision.parse(precision))
        found = with_scales_in(high, self._found[precision])
        reason = "kept in float" if attention == "float" else None
        sites = AttentionSites(attention, high, self.sites, [reason] * len(self.sites))
        graph = self._traced.clone()
        ir.passes.Sequential(
            InsertQuantization(found, TRT, sites.quantized(self._quantizer)),
            *([] if high == "fp32" else [ToHalfPrecision(high)]),
            common.RemoveUnusedNodesPass(),
        )(graph)
        path = folder / f"{precision}-{high}-{attention}.onnx"
        save_graph(graph, path)
        return path, found


FLOAT_TYPES: dict[HighPrecision, Any] = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}
INTEGERS: list[tuple[str, HighPrecision]] = [(name, high) for name in ("w8a8", "w4a8", "w4a16") for high in ("fp32", "fp16")]
BLOCKS: list[tuple[str, HighPrecision]] = [("nvfp4", "fp16"), ("nvfp4a8", "fp16"), ("mxfp8", "fp16"), ("nvfp4", "bf16"), ("mxfp8", "fp32")]
PAIRS: list[tuple[str, HighPrecision]] = [*INTEGERS, ("w8a8", "bf16"), ("fp8", "fp16")]
"""Precisions, and the types around them."""

BUILT: list[tuple[str, HighPrecision]] = [("w8a8", "fp16"), ("w4a16", "fp16"), ("fp8", "fp16")]
"""Those that `cross_trt_build` holds, whose graphs the tests above look at and build."""


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("transformer", [*BLOCKS, ("w8a8", "bf16")]),
        pytest.param("transformer", [*INTEGERS, ("fp8", "fp16")], marks=pytest.mark.slow),
        pytest.param("cross attention", [pair for pair in PAIRS if pair not in BUILT], marks=pytest.mark.slow),
    ],
    ids=["transformer", "transformer in integers", "cross attention"],
)
def test_network_keeps_the_plan_in_every_type_and_builds(
    request: pytest.FixtureRequest, name: str, pairs: list[tuple[str, HighPrecision]], tmp_path: Path
) -> None:
    if name == "transformer":
        model, graph = request.getfixturevalue("transformer"), request.getfixturevalue("transformer_graph")
    else:
        model = request.getfixturevalue("cross_trt_build").context.model
        graph = _traced(model, tmp_path)
    quantized, paths = Quantized(model, graph), []
    for precision, high in pairs:
        path, layers = quantized.write(precision, high, tmp_path)
        check_tensorrt_graph(path)
        parsed = _holds_the_plan(path, layers, FLOAT_TYPES[high])
        assert len(parsed.pairs) == sum(layer.layer.role == "inner" for layer in layers if precision != "w4a16")
        paths.append(path)
    assert len(_parse(paths[0]).pairs) >= 12
    assert all(_built_sizes(paths))


def test_groups_of_weight_scales_and_branches_of_low_rank_build(
    transformer: LoadedModel, transformer_graph: ir.Model, tmp_path: Path
) -> None:
    """Branches stay in float beside int8 products, E4M3 ones, and those of floats in blocks."""
    overrides = LayerOverrides(weight_group=32, low_rank=4)
    quantized, paths = Quantized(transformer, transformer_graph, QuantizationSettings(overrides=overrides)), []
    for precision in ("w4a16", "w4a4", "nvfp4a8", "nvfp4"):
        path, layers = quantized.write(precision, "fp16", tmp_path)
        check_tensorrt_graph(path)
        _holds_the_plan(path, layers, trt.float16)
        has_it = [layer.rule.group == 32 if precision == "w4a16" else layer.branch is not None for layer in layers]
        assert sum(has_it) >= 8, precision
        paths.append(path)
    assert all(_built_sizes(paths))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "flux-dev" else pytest.mark.slow) for name in PIPED])
def test_transformers_of_the_table_keep_the_plan_in_float16_and_build(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    model = _of_the_table(request, name, tmp_path)
    quantized, paths = Quantized(model, _traced(model, tmp_path)), []
    for precision in ("w8a8", "w4a8", "fp8"):
        path, layers = quantized.write(precision, "fp16", tmp_path)
        check_tensorrt_graph(path)
        assert len(_holds_the_plan(path, layers, trt.float16).pairs) == sum(layer.layer.role == "inner" for layer in layers) >= 8
        paths.append(path)
    assert all(_built_sizes(paths))


def _of_the_table(request: pytest.FixtureRequest, name: str, folder: Path) -> LoadedModel:
    transformer_folder: Callable[[str], Path] = request.getfixturevalue("transformer_folder")
    sampler, steps, guidance = USUAL[name]
    plan = Plan.model_validate(
        {"model": model_section(name), "sampler": {"name": sampler, "steps": steps, "guidance": guidance}, "precisions": ["w8a8"],
         "target": {"name": "tensorrt-rtx"}, "output": "unused"}
    )  # fmt: skip
    return load_model(PlanFile(plan, transformer_folder(name).parent, folder))


@pytest.mark.parametrize("name", [pytest.param("transformer", marks=pytest.mark.slow), "sd3"])
def test_attention_in_8_bits_is_read_as_such_and_builds(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    model = request.getfixturevalue("transformer") if name == "transformer" else _of_the_table(request, name, tmp_path)
    quantized, paths = Quantized(model, _traced(model, tmp_path)), []
    kinds: dict[AttentionForm, Any] = {"fp8": trt.fp8, "int8": trt.int8}
    for form, kind in kinds.items():
        path, layers = quantized.write("w8a8", "fp16", tmp_path, form)
        check_tensorrt_graph(path)
        parsed = _holds_the_plan(path, layers, trt.float16, {kind})
        assert parsed.products == [(kind, kind)] * 2 * len(quantized.sites)
        paths.append(path)
    assert len(quantized.sites) >= 2
    assert all(_built_sizes(paths))


# The size of a real model


@pytest.mark.slow
def test_a_36_million_parameter_u_net_builds_in_4_gigabytes_and_3_minutes(tmp_path: Path) -> None:
    """Traced, quantized and built here, in processes of their own: peak memory of the larger, and time of both."""
    begin = time.monotonic()
    for stage in ("export", "build"):
        command = [sys.executable, "-m", "tests.ptqd_export.graph.large_tensorrt_build", stage, str(tmp_path)]
        done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        peak = float(done.stdout.splitlines()[-1])
        print(f"{stage}: {peak:.2f} GB, {time.monotonic() - begin:.0f} s so far")  # noqa: T201 (a figure to be seen)
        assert peak < 4
    assert time.monotonic() - begin < 180
