"""Stage `prepare`: changes the network so that it quantizes better while computing the same function."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.preparation.channel_scaling import (
    ScalableChannels,
    observe_channels,
    scale_channels,
    scaled_parameters,
    scaling_factors,
)
from calib.quantizers.preparation.rotation import FoldedRotation, fold_rotation, rotate_inputs, rotation_block
from calib.quantizers.preparation.split_layer import part_name, split_layers
from calib.quantizers.sharing_copy import sharing_copy
from calib.walk.activation_states import States
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.rotated_inputs import RotateInputs
from ptqd_export.graph.passes.split_concatenations import SplitConcatenations, concatenated_inputs
from ptqd_export.graph.reading.graph_layers import find_layers
from ptqd_export.graph.reading.parameter_values import ParameterValues
from ptqd_export.graph.reading.rotatable_channels import rotatable_channels
from ptqd_export.graph.reading.scalable_channels import scalable_channels
from ptqd_export.graph.trace import check_parity
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.network.states import input_batches, load_states, network_inputs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.reporter import Reporter, each

PREPARATION = "preparation.json"


@dataclass(frozen=True)
class Preparation:
    """Changes to a network: first splitting, then scaling, then rotating, where that folds into weights and where it does not.

    Attributes:
        split: sizes of the parts of each split layer's input, by the layer's name.
        scaled: channels and their factors, float32 [channels]; layers have their names after splitting.
        rotated: size of the blocks of each input that is rotated at run time, by the layer's name.
        folded: rotations that are folded into weights.
    """

    split: Mapping[str, tuple[int, ...]]
    scaled: tuple[tuple[ScalableChannels, Tensor], ...]
    rotated: Mapping[str, int] = field(default_factory=dict)
    folded: tuple[FoldedRotation, ...] = ()

    @property
    def blocks(self) -> dict[str, int]:
        """Size of the blocks of each rotated input, however it is rotated, by the layer's name."""
        return {**self.rotated, **{name: one.size for one in self.folded for name in one.consumers}}

    def apply(self, network: nn.Module) -> nn.Module:
        """Return a prepared copy of the network."""
        prepared = sharing_copy(network)
        split_layers(prepared, self.split)
        for channels, factors in self.scaled:
            scale_channels(prepared, channels, factors)
        for folded in self.folded:
            fold_rotation(prepared, folded)
        rotate_inputs(prepared, self.rotated)
        return prepared

    def save(self, folder: Path) -> None:
        """Write `preparation.json`, which people and programs read."""
        scaled = [
            asdict(channels) | {"largest_factor": float(factors.max()), "factors": factors.tolist()} for channels, factors in self.scaled
        ]
        stored = {"split": self.split, "scaled": scaled, "rotated": self.rotated, "folded": [asdict(one) for one in self.folded]}
        (folder / PREPARATION).write_text(json.dumps(stored, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Preparation:
        stored = json.loads((folder / PREPARATION).read_text())
        factors = [torch.tensor(one["factors"], dtype=torch.float32) for one in stored["scaled"]]
        channels = [ScalableChannels(one["producer"], one["first"], tuple(one["consumers"])) for one in stored["scaled"]]
        split = {name: tuple(sizes) for name, sizes in stored["split"].items()}
        folded = tuple(FoldedRotation(**{**one, "consumers": tuple(one["consumers"])}) for one in stored.get("folded", ()))
        return cls(split, tuple(zip(channels, factors, strict=True)), stored.get("rotated", {}), folded)


def prepared_model(context: BuildContext, prepared: Path) -> LoadedModel:
    """Return the model with the network to quantize.

    Args:
        context: context of the build.
        prepared: folder of the stage `prepare`, or of `trace` if there was nothing to prepare.
    """
    if not (prepared / PREPARATION).exists():
        return context.model
    return context.model.with_network(Preparation.load(prepared).apply(context.model.adapter.network))


def rotated_blocks(prepared: Path) -> dict[str, int]:
    """Return the size of the blocks of each rotated input, by the layer's name; `prepared` as for `prepared_model`."""
    return Preparation.load(prepared).blocks if (prepared / PREPARATION).exists() else {}


def make_preparation(
    context: BuildContext, traced: Path, states: Path, folder: Path, reporter: Reporter, *, first: Path | None = None
) -> None:
    """Write the prepared `fp32.onnx` and `network.json`, and `preparation.json`.

    `first` is the folder of this stage at the first size, whose factors a further size takes.

    Raises:
        PtqdError: the prepared graph or network does not compute what the model computes.
    """
    settings = context.plan.quantization
    graph, network = ir.load(traced / f"{FULL_PRECISION}.onnx"), TracedNetwork.load(traced)
    split = concatenated_inputs(graph.graph, _quantized(context, network)) if settings.split_concatenations else {}
    SplitConcatenations(split)(graph)
    network = _network(graph.graph, network, split)
    found = [] if settings.channel_scaling is None else scalable_channels(graph.graph, _quantized(context, network))
    folded = [] if settings.rotation == "none" else rotatable_channels(graph.graph, _quantized(context, network))
    done = {name for one in folded for name in one.consumers}
    rotated = _blocks(context, network, done) if settings.rotation == "hadamard" else {}
    measured = _scaled(context, Preparation(split, ()), found, load_states(states), reporter)
    preparation = Preparation(split, tuple(measured) if first is None else Preparation.load(first).scaled, rotated, tuple(folded))
    model = context.model.with_network(preparation.apply(context.model.adapter.network))
    changed = scaled_parameters(model.adapter.network, found)
    own = dict(model.adapter.network.named_parameters())
    names = [*(f"{name}.weight" for name in rotated), *(name for one in folded for name in one.parameters)]
    changed |= {name: own[name].detach() for name in names if name in own}
    ParameterValues({name: value.numpy() for name, value in changed.items()})(graph)
    RotateInputs(rotated)(graph)
    network = _with_rotations(graph.graph, network, rotated)
    common.RemoveUnusedNodesPass()(graph)
    path = folder / f"{FULL_PRECISION}.onnx"
    save_graph(graph, path)
    for computed in (context.model, model):
        check_parity(computed, path)
    (folder / "network.json").write_text(json.dumps(asdict(network), indent=1))
    preparation.save(folder)


def _quantized(context: BuildContext, network: TracedNetwork) -> list[str]:
    """Return the layers whose activations may be quantized. Layers that the plan keeps in float are left out, so they keep their names."""
    kept = context.plan.quantization.keep_float
    inner = (layer.name for layer in network.layers if layer.role == "inner")
    return [name for name in inner if not any(fnmatch.fnmatchcase(name, pattern) for pattern in kept)]


def _network(graph: ir.Graph, network: TracedNetwork, split: Mapping[str, tuple[int, ...]]) -> TracedNetwork:
    """Return the layers after splitting. A part's multiply-accumulates are proportional to its share of the input channels."""
    macs = {layer.name: layer.macs for layer in network.layers}
    for name, sizes in split.items():
        macs |= {part_name(name, i): macs[name] * size // sum(sizes) for i, size in enumerate(sizes)}
    return TracedNetwork(tuple(find_layers(graph, macs)), network.macs)


def _blocks(context: BuildContext, network: TracedNetwork, done: Collection[str]) -> dict[str, int]:
    """Return the size of the blocks of every input to rotate at run time: those of linear layers whose activations may be quantized, except
    for layers that other layers have `done` it for.
    """
    shapes = {layer.name: layer.shape for layer in network.layers}
    names = [name for name in _quantized(context, network) if len(shapes[name]) == 2 and name not in done]
    found = {name: rotation_block(shapes[name][1]) for name in names}
    return {name: size for name, size in found.items() if size is not None}


def _with_rotations(graph: ir.Graph, network: TracedNetwork, rotated: Mapping[str, int]) -> TracedNetwork:
    """Return the layers with the sources that they share after rotation, and what the rotations cost: layers of one source share one."""
    macs = {layer.name: layer.macs for layer in network.layers}
    layers = tuple(find_layers(graph, macs))
    rotations = {layer.source: macs[layer.name] // layer.shape[0] * rotated[layer.name] for layer in layers if layer.name in rotated}
    return replace(network, layers=layers, added=sum(rotations.values()))


def _scaled(
    context: BuildContext, split: Preparation, found: list[ScalableChannels], states: States, reporter: Reporter
) -> Iterator[tuple[ScalableChannels, Tensor]]:
    """Yield every group of channels with its factors. A layer may be in two groups, once for its inputs and once for its outputs."""
    exponent = context.plan.quantization.channel_scaling
    if exponent is None or not found:
        return
    network = split.apply(context.model.adapter.network)
    x = _largest_inputs(context, context.model.with_network(network), [channels.consumers[0] for channels in found], states, reporter)
    for channels in found:
        factors = scaling_factors(network, channels, x[channels.consumers[0]], exponent)
        scale_channels(network, channels, factors)
        yield channels, factors


def _largest_inputs(context: BuildContext, model: LoadedModel, layers: list[str], states: States, reporter: Reporter) -> dict[str, Tensor]:
    """Return the largest magnitude of each input channel of the given layers over the states, by layer."""
    placed = context.calibration_device.place(model)
    with observe_channels(placed.adapter.network, layers) as seen, torch.no_grad():
        for batch in network_inputs(context, states, each(reporter, input_batches(context, states))):
            placed.adapter(*batch)
    return seen
