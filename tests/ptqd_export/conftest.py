"""Two tiny random diffusers models, each built into bundles once; tests read the results, or copy them in order to damage them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calib.quantizers.quantize import ActivationQuantizers, QuantizationSettings, Quantizer
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.quantizers.scale_type import with_scales_in
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import Mode
from engines.samplers import NoiseSchedule
from ptqd_export.graph.reading.transposed_weights import TRANSPOSED
from ptqd_export.models.base import Adapter, LoadedModel
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.activations import load_observations
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.models.tiny_transformers import PRECISIONS, USUAL, model_section, write_tiny
from tests.shared import shared_folder

Array = NDArray[Any]
Feeds = Mapping[str, Array]

TOKENS, DIM, ROWS = 5, 12, 3
CLASS_MODEL = {"path": "model", "null_class": 3}
CALIBRATION = {"samples": 16, "batch_size": 8, "activation_samples": 64}


@dataclass(frozen=True)
class Built:
    """A finished build: its plan and the output of its stages."""

    plan_file: PlanFile
    quantized: dict[str, list[QuantizedLayer]] = field(default_factory=dict, repr=False)
    activations: ActivationQuantizers = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        return self.plan_file.output_path

    @cached_property
    def context(self) -> BuildContext:
        return BuildContext(self.plan_file)

    @property
    def network(self) -> TracedNetwork:
        return TracedNetwork.load(self.stage("trace"))

    def stage(self, name: str) -> Path:
        (folder,) = (self.folder / "local" / "stages").glob(f"{name}-*")
        return folder

    def graph(self, precision: str) -> Path:
        return self.folder / "graphs" / self.context.placement.name / f"{precision}.onnx"

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text())
        return content

    def quantize(self, precision: str) -> list[QuantizedLayer]:
        """Recompute the quantized layers of the build from its observations."""
        if precision not in self.quantized:
            self.quantized[precision] = self.quantize_with(QuantizationSettings(), precision, self.activations)
        return self.quantized[precision]

    def quantize_with(
        self, settings: QuantizationSettings, precision: str, found: ActivationQuantizers | None = None
    ) -> list[QuantizedLayer]:
        """Quantize the build's layers from its observations with other settings; `found` are those of an earlier call."""
        network, seen = self.context.model.adapter.network, load_observations(self.stage("observe"))
        quantizer = Quantizer(network, self.network.layers, seen, self.context.placement, settings, found)
        return with_scales_in(self.context.high_precision, quantizer.quantize(Precision.parse(precision)))

    def portable(self) -> dict[str, bytes]:
        """Return the contents of all files outside `local/`, by name."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        named = {path.relative_to(self.folder).as_posix(): path for path in files}
        return {name: path.read_bytes() for name, path in named.items() if not name.startswith("local/")}

    def resumed_in(self, output: Path, **sections: Any) -> PlanFile:
        """Copy the finished stages of this build to a new output folder without a bundle; return the plan for it, with changed sections."""
        shutil.copytree(self.folder / "local" / "stages", output / "local" / "stages")
        plan = Plan.model_validate(self.plan_file.plan.model_dump(mode="json") | sections)
        return PlanFile(plan, self.plan_file.folder, output)


@pytest.fixture(scope="session")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a class-conditional UNet2DModel with attention; its last class means "no class"."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        num_class_embeds=4,
    )  # fmt: skip
    return shared_folder(tmp_path_factory, "class", lambda folder: _save(network, folder / "model")) / "model"


@pytest.fixture(scope="session")
def cross_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a UNet2DConditionModel with cross attention; `conditions.npz` beside it contains its conditioning table."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=8, cross_attention_dim=DIM,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        _save(network, folder / "model")
        table = np.random.default_rng(0).standard_normal((ROWS, TOKENS, DIM), dtype=np.float32)
        arrays = {"encoder_hidden_states": table, "null.encoder_hidden_states": np.zeros((TOKENS, DIM), dtype=np.float32)}
        np.savez(folder / "conditions.npz", allow_pickle=False, **arrays)

    return shared_folder(tmp_path_factory, "cross", fill) / "model"


@pytest.fixture(scope="session")
def class_build(class_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A guided build with four quantized precisions and DDIM with eta 1. Tests must not modify it."""
    return _build_once(
        tmp_path_factory,
        "class_build",
        class_model.parent,
        model=CLASS_MODEL,
        sampler={"name": "ddim", "steps": 4, "eta": 1.0, "guidance": 1.5},
        precisions=["w8a8", "w4a8", "w4a4", "w3a8"],
    )


@pytest.fixture(scope="session")
def small_build(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The build of `class_build` with one of its precisions: for tests that build again and again. Tests must not modify it."""
    folder = shared_folder(
        tmp_path_factory, "small_build", lambda folder: run_build(class_build.resumed_in(folder / "bundle", precisions=["w8a8"]))
    )
    plan = class_build.plan_file.plan.model_copy(update={"precisions": ("w8a8",)})
    return Built(PlanFile(plan, class_build.plan_file.folder, folder / "bundle"))


@pytest.fixture(scope="session")
def cross_build(cross_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A guided build with float, 8-bit, 4-bit and weight-only precisions and DDPM. Tests must not modify it."""
    return _build_once(
        tmp_path_factory,
        "cross_build",
        cross_model.parent,
        model={"path": "model", "conditions": "conditions.npz"},
        sampler={"name": "ddpm", "steps": 3, "eta": 1.0, "guidance": 2.0},
        precisions=["fp32", "w8a8", "w4a8", "w4a16"],
        correction={"mode": "ptqd", "variance": "schedule"},
    )


@pytest.fixture(scope="session")
def class_trt_build(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build for TensorRT-RTX whose float part is float32. Tests must not modify it."""
    return _build_once(
        tmp_path_factory,
        "class_trt_build",
        class_build.plan_file.folder,
        traced=class_build,
        model=CLASS_MODEL,
        sampler={"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.5},
        precisions=["w8a8", "w4a8", "w4a4"],
        target={"name": "tensorrt-rtx", "high_precision": "fp32", "threads": 2, "batch": {"opt": 2, "max": 3}, "workspace_gib": 1.0},
    )


@pytest.fixture(scope="session")
def cross_trt_build(cross_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build for TensorRT whose float part is float16, with float16 full precision among its precisions. Tests must not modify it."""
    return _build_once(
        tmp_path_factory,
        "cross_trt_build",
        cross_build.plan_file.folder,
        traced=cross_build,
        model={"path": "model", "conditions": "conditions.npz"},
        sampler={"name": "ddpm", "steps": 2, "eta": 1.0, "guidance": 2.0},
        precisions=["fp16", "fp8", "w8a8", "w4a4", "w4a16"],
        target={"name": "tensorrt", "threads": 2},
    )


@pytest.fixture(scope="session")
def digits_trt_build(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build of the digits model for TensorRT-RTX, with default quantization and target settings. Tests must not modify it."""
    return _build_once(
        tmp_path_factory,
        "digits_trt_build",
        Path(__file__).parents[2],
        model={"path": "tools/digits/model", "null_class": 10},
        sampler={"name": "ddim", "steps": 2, "eta": 1.0, "guidance": 1.5},
        precisions=["w8a8", "w4a8", "w4a4"],
        target={"name": "tensorrt-rtx"},
    )


@pytest.fixture(scope="session")
def transformer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a small transformer's pipeline, with its conditions beside it. Tests must not modify it."""
    return cache(lambda name: shared_folder(tmp_path_factory, name, lambda folder: write_tiny(name, folder)) / "model")


@pytest.fixture(scope="session")
def transformer_build(transformer_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """A function that returns the build of a family with the guidance that `init` writes, in four steps. Tests must not modify it."""

    def build(name: str) -> Built:
        sampler, _, guidance = USUAL[name]
        return _build_once(
            tmp_path_factory,
            f"{name}_build",
            transformer_folder(name).parent,
            model=model_section(name),
            sampler={"name": sampler, "steps": 4, "guidance": guidance},
            precisions=list(PRECISIONS),
            calibration={"samples": 4, "batch_size": 4, "activation_samples": 8},
        )

    return cache(build)


@pytest.fixture(scope="session")
def build_in() -> Callable[..., Built]:
    """A function `build_in(folder, **sections)` that builds a plan for the model in a folder."""
    return _build


@pytest.fixture(scope="session")
def as_model() -> Callable[[nn.Module, tuple[int, ...]], LoadedModel]:
    """A function that wraps any module of one argument as an unconditional model that ignores the timestep."""

    class Timeless(Adapter):
        def forward(self, sample: Tensor, timestep: Tensor, *_conditions: Tensor) -> Tensor:
            out: Tensor = self.network(sample) + 0 * timestep.reshape(-1, *[1] * (sample.ndim - 1))
            return out

    def adapt(network: nn.Module, shape: tuple[int, ...]) -> LoadedModel:
        return LoadedModel("test", Timeless(network, ()), shape, None, None, NoiseSchedule(clip_sample=False))

    return adapt


@pytest.fixture(scope="session")
def parse_graph() -> Callable[[str], ir.Model]:
    """A function that parses a graph in ONNX's text form."""

    def parse(text: str) -> ir.Model:
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
        assert isinstance(model, ir.Model)
        return model

    return parse


@pytest.fixture(scope="session")
def graph_of(parse_graph: Callable[[str], ir.Model]) -> Callable[[str, nn.Module], ir.Model]:
    """A function that parses a graph and binds its inputs to a module's parameters.

    The input `fc_weight` becomes the parameter `fc.weight`, and `fc_weight_T` its transpose.
    """

    def graph_of(text: str, network: nn.Module) -> ir.Model:
        model = parse_graph(text)
        for value in list(model.graph.inputs):
            name = str(value.name).replace("_", ".")
            if name.removesuffix(TRANSPOSED) in network.state_dict():
                parameter = network.state_dict()[name.removesuffix(TRANSPOSED)].numpy()
                model.graph.inputs.remove(value)
                value.name, value.const_value = name, ir.tensor(parameter.T if name.endswith(TRANSPOSED) else parameter)
                model.graph.register_initializer(value)
        return model

    return graph_of


@pytest.fixture
def run_graph(tmp_path: Path) -> Callable[..., Array]:
    """A function that runs a graph on ONNX Runtime, by default in the mode `exact`, which runs the graph as written."""

    def run(graph: ir.Model, feeds: Feeds, mode: Mode = "exact") -> Array:
        path = tmp_path / "graph.onnx"
        ir.save(graph, path)
        return OnnxRuntimeEngine(path, mode=mode, threads=1).run(feeds)

    return run


def _save(network: Any, folder: Path) -> Path:
    from diffusers import DDIMScheduler

    network.save_pretrained(folder / "unet")
    DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def _build(folder: Path, **sections: Any) -> Built:
    plan_file = PlanFile(_plan(**sections), folder, folder / "bundle")
    run_build(plan_file)
    return Built(plan_file)


def _build_once(factory: pytest.TempPathFactory, name: str, source: Path, traced: Built | None = None, **sections: Any) -> Built:
    """The build of a plan in the folder `source`, made once per run and shared between workers; the network is that of `traced`."""
    plan = _plan(**sections)

    def fill(folder: Path) -> None:
        if traced is not None:
            trace = traced.stage("trace")
            shutil.copytree(trace, folder / "bundle" / "local" / "stages" / trace.name)
        run_build(PlanFile(plan, source, folder / "bundle"))

    return Built(PlanFile(plan, source, shared_folder(factory, name, fill) / "bundle"))


def _plan(**sections: Any) -> Plan:
    target = {"name": "onnxruntime", "threads": 1, "benchmark_batch": 2}
    shared = {"model": {"path": "model"}, "calibration": CALIBRATION, "correction": {"mode": "joint"}, "target": target, "output": "bundle"}
    return Plan.model_validate(shared | sections)
