"""Load a network from an ONNX graph: `"model": {"onnx": "unet.onnx", "graph": {...}}`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.base import Declaration, LoadedModel
from ptqd_export.models.conditions import IMAGE, ConditionInput, conditioning_of, image_input
from ptqd_export.models.module_checks import check_finite
from ptqd_export.models.onnx_graph.free_rows import OwnGraph, check_rows, free_rows
from ptqd_export.models.onnx_graph.graph_module import GraphModule
from ptqd_export.models.onnx_graph.graph_schedule import noise_schedule, own_sampler, preconditioning_of
from ptqd_export.models.onnx_graph.graph_signature import TIMES, GraphSignature, condition_shape, find_signature, sample_shape
from ptqd_export.models.onnx_graph.onnx_adapter import Convention, OnnxAdapter
from ptqd_export.models.onnx_graph.reading.folded import folded
from ptqd_export.models.onnx_graph.reading.fused.fused_nodes import split_fused
from ptqd_export.models.onnx_graph.reading.group_norm_nodes import with_group_norms
from ptqd_export.models.onnx_graph.reading.onnx_file import GraphValue, onnx_files, read_interface, read_onnx
from ptqd_export.models.onnx_graph.reading.runnable_graph import runnable_graph
from ptqd_export.models.onnx_graph.reading.time_lookup import looks_up
from ptqd_export.models.onnx_graph.reading.transposes import without_undone_transposes
from ptqd_export.plan.graph_section import GraphInputSection, GraphSection, Preconditioning, TimeUnit

RESERVED = ("sample", "timestep", "out")
"""Names that the graphs of a bundle give to the state, the timestep and the output."""


@dataclass(frozen=True)
class OnnxModel:
    """A graph and what the plan says about it.

    Attributes:
        path: file of the graph.
        section: the plan's words.
        signature: the parts of its interface.
        convention: how it takes states and times.
        shape: shape of one state.
        conditions: the other inputs that the plan gives no value, in the graph's order, and the image that the graph takes as further
            channels of the state.
    """

    path: Path
    section: GraphSection
    signature: GraphSignature
    convention: Convention
    shape: tuple[int, ...]
    conditions: tuple[ConditionInput, ...]

    @property
    def constants(self) -> tuple[GraphValue, ...]:
        """Inputs that the plan gives one value."""
        return tuple(one for one in self.signature.others if _said(self.section, one.name).value is not None)

    @property
    def conditioned(self) -> tuple[GraphValue, ...]:
        return tuple(one for one in self.signature.others if one not in self.constants)


def describe_onnx(path: Path, section: GraphSection, folder: Path) -> OnnxModel:
    """Match a graph's interface with what the plan says about it, without reading weights.

    Args:
        path: file of the graph.
        section: section `model.graph` of the plan.
        folder: folder of the plan.

    Raises:
        UsageError: the file is no graph, or the two do not fit.
    """
    inputs, outputs = read_interface(path)
    constants = [name for name, one in section.inputs.items() if one.value is not None]
    unknown = sorted(section.inputs.keys() - {one.name for one in inputs})
    if unknown:
        raise UsageError(
            "The graph has no such input.",
            found=f"model.graph.inputs: {', '.join(unknown)}",
            expected=", ".join(one.name for one in inputs),
        )
    found = find_signature(inputs, outputs, state=section.state, time=section.time, output=section.output, constants=constants)
    schedule = noise_schedule(section, folder).model_copy(update={"whole_timesteps": looks_up(path, found.time.name)})
    taken, *sizes = sample_shape(found.state, section.shape, "model.graph.shape")
    channels = _channels(taken, found.output)
    images = [] if channels == taken else [_image(taken - channels, sizes, found)]
    conditions = (_condition(one, _said(section, one.name)) for one in found.others if one.name not in constants)
    return OnnxModel(
        path=path,
        section=section,
        signature=found,
        convention=_convention(section, folder, schedule, found),
        shape=(channels, *sizes),
        conditions=(*conditions, *images),
    )


def declare_onnx(path: Path, section: GraphSection, folder: Path) -> Declaration:
    """Describe a graph's model. Raises the errors of `describe_onnx`."""
    model = describe_onnx(path, section, folder)
    sampler, steps, guidance = own_sampler(section, folder)
    return Declaration(
        family=f"onnx {path.name}",
        sample_shape=model.shape,
        inputs=model.conditions,
        noise_schedule=model.convention.schedule,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        takes_prompts=False,
    )


def load_onnx(path: Path, section: GraphSection, folder: Path, null_class: int | None, table: Path | None) -> LoadedModel:
    """Load a graph as a torch network, and compare it with the graph on ONNX Runtime.

    Args:
        path: file of the graph.
        section: section `model.graph` of the plan.
        folder: folder of the plan.
        null_class: see `ptqd_export.models.conditions.conditioning_of`.
        table: its argument `table`.

    Raises:
        UsageError: the graph is not supported, or the plan does not fit it.
        PtqdError: torch does not compute what the graph computes.
    """
    described = describe_onnx(path, section, folder)
    conditioning, null = conditioning_of(described.conditions, null_class, table)
    network, half = _network(described)
    constants = [(_constant(one, float(_said(section, one.name).value or 0.0)), _is_free(one)) for one in described.constants]
    kinds = {value.name: value.dtype for value in described.conditioned} | {
        one.name: IMAGE for one in described.conditions if one.name == IMAGE
    }
    model = LoadedModel(
        family=f"onnx {path.name}",
        adapter=OnnxAdapter(network, kinds, described.convention, constants, max(1, len(described.signature.time.shape or ()))),
        sample_shape=described.shape,
        conditioning=conditioning,
        null_class=null,
        noise_schedule=described.convention.schedule,
        files=(*onnx_files(path), *([] if section.scheduler is None else [folder / section.scheduler])),
    )
    check_finite(network, str(path))
    _free_and_compare(model, described, half=half)
    return model


def _network(described: OnnxModel) -> tuple[GraphModule, bool]:
    """Return the graph as a module, and whether its weights are in 16 bits."""
    graph, output = read_onnx(described.path), described.signature.output.name
    live, constants = folded(split_fused(graph), output)
    nodes, added = with_group_norms(without_undone_transposes(live, output), constants, output)
    return GraphModule(nodes, {**constants, **added}, [one.name for one in _in_order(described)], output), graph.half


def _in_order(described: OnnxModel) -> list[GraphValue]:
    """Return the inputs in the order in which the adapter gives them."""
    found = described.signature
    return [found.state, found.time, *described.conditioned, *described.constants]


def _free_and_compare(model: LoadedModel, described: OnnxModel, *, half: bool) -> None:
    adapter = model.adapter
    assert isinstance(adapter, OnnxAdapter)
    network = adapter.network
    assert isinstance(network, GraphModule)
    inputs = _in_order(described)
    batched = [one not in described.constants or _is_free(one) for one in inputs]
    with TemporaryDirectory() as folder:
        own = OwnGraph.open(runnable_graph(described.path, Path(folder)), inputs, batched, described.signature.output.name)
        free_rows(network, own, adapter.graph_inputs(*model.example_inputs(2)))
        check_rows(network, own, adapter.graph_inputs(*model.example_inputs(3)), half=half)


def _convention(section: GraphSection, folder: Path, schedule: NoiseSchedule, found: GraphSignature) -> Convention:
    form = section.state_form or ("added" if schedule.on_sigmas else "scaled")
    kind, sigma_data, negative = preconditioning_of(section, folder)
    unit = section.time_unit or _unit(kind, schedule, found.time)
    return Convention(schedule, unit, form, kind, sigma_data, negative)


def _unit(preconditioning: Preconditioning | None, schedule: NoiseSchedule, time: GraphValue) -> TimeUnit:
    """Return what the name of the time says. On a flow, floats are shares of noise; with preconditioning, times are those of its paper."""
    if preconditioning is not None:
        return "c_noise" if preconditioning == "edm" else "c_noise_1000"
    if schedule.prediction_type == "flow":
        return "fraction" if time.is_float and time.name.lower() in ("t", "time", "sigma", "sigmas") else "timestep"
    if schedule.on_sigmas and time.name.lower() in ("t", "time"):
        return "sigma"
    return TIMES.get(time.name.lower(), "timestep")


def _channels(taken: int, output: GraphValue) -> int:
    """Return the channels of the state, given those that the graph takes: fewer, if it returns fewer."""
    made = output.shape[1] if output.shape is not None and len(output.shape) > 1 else None
    return min(taken, made) if isinstance(made, int) else taken


def _image(channels: int, sizes: Sequence[int], found: GraphSignature) -> ConditionInput:
    if len(sizes) != 2 or any(one.name == IMAGE for one in found.others):
        raise UsageError(
            "The graph returns fewer channels than it takes.",
            found=f"{found.state}; {found.output}",
            expected="as many channels, or the channels of an image [height, width] behind those of the state",
        )
    return image_input(channels, *sizes)


def _said(section: GraphSection, name: str) -> GraphInputSection:
    return section.inputs.get(name, GraphInputSection())


def _condition(value: GraphValue, section: GraphInputSection) -> ConditionInput:
    if value.name in RESERVED:
        raise UsageError(
            "An input of the graph has a name that bundles use for something else.",
            found=value.name,
            expected=f"inputs beside the state and the time that are not called {', '.join(RESERVED)}",
            mend="rename the input, or say which inputs are the state and the time as model.graph.state and model.graph.time",
        )
    whole = value.dtype.startswith(("INT", "UINT"))
    if section.labels is not None:
        if not whole:
            raise UsageError("An input of floats has no labels.", found=str(value), expected="an input of whole numbers")
        return ConditionInput(value.name, "int64", (), section.labels)
    return ConditionInput(value.name, "int64" if whole else "float32", condition_shape(value, section))


def _is_free(value: GraphValue) -> bool:
    """Return whether an input has a free number of rows."""
    return bool(value.shape) and not isinstance((value.shape or (None,))[0], int)


def _constant(value: GraphValue, number: float) -> Tensor:
    sizes = [size if isinstance(size, int) else 1 for size in value.shape or ()]
    kind = torch.float32 if value.is_float else torch.bool if value.dtype == "BOOL" else torch.int64
    return torch.full(sizes, number, dtype=kind)
