"""Compares every layer of a quantized graph with the same layer of its oracle, at the values that the graph itself computes.

Along the whole network the error of one layer drowns in values that a rounding tie sends to another integer, and such values multiply from
layer to layer. So the oracle is led along the graph: behind every layer it continues with the graph's output. Then each comparison contains
one layer and the float operators before it, and one state is evidence enough.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.errors import PtqdError
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.passes.layer_outputs import SHOWN
from ptqd_export.graph.passes.raw_layer_outputs import ShowRawLayerOutputs
from ptqd_export.graph.stand_in_backend import runnable
from ptqd_export.models.base import LoadedModel

Feeds = Mapping[str, NDArray[Any]]

LEAST_LAYER_DB = 50.0
"""Least agreement of a layer's output."""

LEAST_CHANNEL_DB = 35.0
"""Least agreement of one output channel."""

QUIET = 1000
"""A channel counts as if it had at least this fraction of the mean power of the layer's channels: silent channels have no agreement."""

HELD_BYTES = 2**30
"""Outputs of layers that are held at once; the graph runs once for each such group of layers."""

OUTPUT = "the network's output"


def check_layers(model: LoadedModel, graph: Path, layers: Sequence[QuantizedLayer], feeds: Feeds) -> float:
    """Compare a graph as written with its oracle, layer by layer, and return the least agreement of a layer in dB.

    A layer agrees if it agrees at one of the samples: there, no rounding tie fell the other way, while a fault shows at every sample.

    Args:
        model: model whose network was quantized.
        graph: quantized graph in float32.
        layers: quantized layers of the graph.
        feeds: inputs of the network; four samples are plenty.

    Raises:
        PtqdError: a layer of the graph does not compute what the oracle's does.
    """
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        branched = {layer.layer.name for layer in layers if layer.branch is not None}
        lead = _Lead(graph.name, _GraphOutputs(graph, feeds, Path(folder)), branched)
        oracle = fake_quantized(model.adapter.network, layers)
        lead.guide(oracle)
        out: Tensor = model.with_network(oracle).adapter(*(torch.from_numpy(value) for value in feeds.values()))
        lead.compare(OUTPUT, out)
    unseen = {layer.layer.name for layer in layers} - lead.compared
    if unseen:
        raise _refusal(
            graph.name, ", ".join(sorted(unseen)), "a layer that the graph or the oracle never runs", "a comparison of every layer"
        )
    return lead.least


class _Lead:
    """Compares an oracle's layers with a graph's, and gives the oracle the graph's outputs to go on with.

    Args:
        graph: name of the graph.
        outputs: outputs of the graph.
        branched: names of the layers that add a branch to their outputs. They have no output quantizers.

    Attributes:
        least: least agreement of a layer so far, in dB.
        compared: names of the layers that were compared so far.
    """

    def __init__(self, graph: str, outputs: _GraphOutputs, branched: Collection[str]) -> None:
        self._graph, self._outputs, self._branched = graph, outputs, branched
        self.least = float("inf")
        self.compared: set[str] = set()

    def guide(self, oracle: nn.Module) -> None:
        """Take part in the oracle's next run, behind the branches of its layers and before their output quantizers."""
        for name in self._outputs.names:
            module = oracle.get_submodule(name)
            behind = self._behind(name, -1 if isinstance(module, nn.Linear) else 1)
            module.register_forward_hook(behind, prepend=name not in self._branched)

    def _behind(self, name: str, axis: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        calls = count()

        def hook(_module: nn.Module, _args: Any, out: Tensor) -> Tensor | None:
            return self.compare(name, out, axis) if next(calls) == 0 else None

        return hook

    def compare(self, name: str, out: Tensor, axis: int = 1) -> Tensor:
        """Return the graph's output of a layer.

        Raises:
            PtqdError: it is not what the oracle's layer computes.
        """
        found = torch.from_numpy(self._outputs[name]).to(out.dtype)
        if found.numel() != out.numel():
            raise _refusal(self._graph, name, f"an output of shape {list(found.shape)}", f"shape {list(out.shape)}")
        found = found.reshape(out.shape)  # a graph may flatten the axes before the channels of a linear layer
        signal, error = (_power(value.double(), axis) for value in (out, found.double() - out.double()))
        agreement = _decibels(signal.mean(1), error.mean(1)).max()
        by_channel = _decibels(signal.clamp(min=float(signal.mean()) / QUIET), error).amax(0)
        channel = int(by_channel.argmin())
        for what, decibels, least in (
            (name, agreement, LEAST_LAYER_DB),
            (f"channel {channel} of {name}", by_channel[channel], LEAST_CHANNEL_DB),
        ):
            if not decibels >= least:
                raise _refusal(self._graph, what, f"agreement to {float(decibels):.1f} dB", f"at least {least:.0f} dB")
        self.least = min(self.least, float(agreement))
        self.compared.add(name)
        return found


def _power(value: Tensor, axis: int) -> Tensor:
    """[samples, channels] mean square."""
    value = value.movedim(axis, 1)
    return value.reshape(*value.shape[:2], -1).square().mean(2)


def _decibels(signal: Tensor, error: Tensor) -> Tensor:
    """10 log10 of signal over error; infinite where there is no error."""
    return torch.where(error == 0, torch.inf, 10 * torch.log10(signal / error))


def _refusal(graph: str, what: str, found: str, expected: str) -> PtqdError:
    return PtqdError(
        f"The graph {graph} does not compute what its oracle computes: {what} differs.",
        found=found,
        expected=expected,
        mend="this is a bug in ptqd-export: please report the model",
    )


class _GraphOutputs:
    """Outputs of a graph's layers and of the graph, computed a group of layers at a time."""

    def __init__(self, graph: Path, feeds: Feeds, folder: Path) -> None:
        self._graph, self._feeds, self._folder = graph, feeds, folder
        self._groups = _groups(graph, len(next(iter(feeds.values()))))
        self._held: dict[str, NDArray[Any]] = {}

    @property
    def names(self) -> list[str]:
        return [name for group in self._groups for name in group]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Output of a layer, or of the network under the name `OUTPUT`; float32."""
        if name not in self._held:
            self._held.clear()
            self._held = self._run(next((group for group in self._groups if name in group), ()))
        return self._held[name]

    def _run(self, group: Collection[str]) -> dict[str, NDArray[Any]]:
        path = self._folder / "shown.onnx"
        shown = ir.load(self._graph)
        ShowRawLayerOutputs(lambda name, _value: name in group)(shown)
        save_graph(shown, path)
        out, *others = run_outputs(runnable(path, self._folder), self._feeds, mode="exact").items()
        return {OUTPUT: out[1], **{name.removeprefix(SHOWN): value for name, value in others}}


def _groups(graph: Path, batch: int) -> list[list[str]]:
    """Divide the layers, in the order of the graph, into groups whose outputs fit `HELD_BYTES`."""
    sizes: dict[str, int] = {}

    def note(name: str, value: ir.Value) -> bool:
        known = [] if value.shape is None else [size for size in value.shape if isinstance(size, int)]
        sizes[name] = 4 * batch * int(np.prod(known, dtype=np.int64))
        return False

    ShowRawLayerOutputs(note)(ir.load(graph))
    groups: list[list[str]] = [[]]
    room = HELD_BYTES
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = HELD_BYTES
        groups[-1].append(name)
        room -= size
    return groups
