"""Stage `trace`: traces the full-precision graph, verifies it against torch, and lists its layers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from calib.quantizers.rules.layers import Layer
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.reading.graph_layers import find_layers
from ptqd_export.graph.sizes.macs import count_macs
from ptqd_export.graph.trace import check_parity, lower, trace
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.reporter import Reporter


@dataclass(frozen=True)
class TracedNetwork:
    """The network's weighted layers and its multiply-accumulates per sample, as found in the graph.

    Attributes:
        layers: the layers.
        macs: multiply-accumulates of the whole network in full precision.
        added: multiply-accumulates in float that preparation has added.
    """

    layers: tuple[Layer, ...]
    macs: int
    added: int = 0

    @classmethod
    def load(cls, traced: Path) -> TracedNetwork:
        stored = json.loads((traced / "network.json").read_text())
        return cls(
            tuple(Layer(**{**layer, "shape": tuple(layer["shape"])}) for layer in stored["layers"]), stored["macs"], stored.get("added", 0)
        )


def make_trace(context: BuildContext, folder: Path, _reporter: Reporter) -> None:
    """Write `fp32.onnx` and `network.json`."""
    model = context.model
    graph: ir.Model = trace(model)
    lower(graph, context.placement)
    macs = count_macs(model)
    network = TracedNetwork(tuple(find_layers(graph.graph, macs)), macs[""])
    path = folder / f"{FULL_PRECISION}.onnx"
    save_graph(graph, path)
    check_parity(model, path)
    (folder / "network.json").write_text(json.dumps(asdict(network), indent=1))
