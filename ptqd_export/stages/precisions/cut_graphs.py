"""Stages `cut-<precision>`: cut the graphs of a precision where steps can reuse features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.errors import UsageError
from ptqd_export.graph.graph_files import save_sharing, save_with_data
from ptqd_export.graph.passes.feature_cuts import cut_features, find_cuts
from ptqd_export.graph.reading.graph_layers import weighted_nodes
from ptqd_export.stages.build_context import CUTS, FULL_PRECISION, GROUPS, cut_path, graph_path, network_graphs
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.reporter import Reporter

FULL_BITS = 32
MOST_COMPUTED = 0.5
"""Largest share of the multiply-accumulates that a step computes at the cut `auto`."""


def named_cuts(traced: Path, asked: Sequence[str] | str) -> tuple[str, ...]:
    """Return the names of the cuts of a plan; `auto` is the cut whose steps compute most, but at most `MOST_COMPUTED`, or none if the
    network has no such cut.

    Raises:
        UsageError: the network has no such cut.
    """
    model = ir.load(traced / f"{FULL_PRECISION}.onnx")
    found = find_cuts(model)
    if asked == "auto":
        shares = {name: _share(traced, model, name) for name in found.proposed}
        fitting = {name: share for name, share in shares.items() if share <= MOST_COMPUTED}
        return (max(fitting, key=lambda name: fitting[name]),) if fitting else ()
    for name in asked:
        if name not in found:
            raise UsageError("The network has no such cut.", found=f"reuse.cuts {name}", expected=found.described)
    return tuple(asked)


def make_cut_graphs(name: str, source: Path, network: Path, cuts: Sequence[str], folder: Path, _reporter: Reporter) -> None:
    """Write the files of a precision again, with the graphs of its cuts beside them, and `cuts.json`. All graphs read one file of weights.

    Args:
        name: name of the precision.
        source: folder of the stage that made its graphs.
        network: folder of the full-precision graph with the same layers, and its `network.json`.
        cuts: names of the cuts.
        folder: folder to write to.
    """
    graphs, first = network_graphs({name: source}, name), graph_path({name: folder}, name)
    for number, (_, path) in enumerate(graphs):
        graph, own = ir.load(path), folder / path.name
        save_with_data(graph, own) if number == 0 else save_sharing(graph, own, first)
        for cut in cuts:
            made = cut_features(ir.load(own), cut)
            save_sharing(made.full, cut_path(own, cut, "full"), first)
            save_sharing(made.reuse, cut_path(own, cut, "reuse"), first)
    for file in ("precision.json", GROUPS):
        if (source / file).exists():
            shutil.copyfile(source / file, folder / file)
    record = json.loads((source / "precision.json").read_text()) if name != FULL_PRECISION else None
    full = ir.load(network / f"{FULL_PRECISION}.onnx")
    (folder / CUTS).write_text(json.dumps({cut: _computed(network, full, cut, record) for cut in cuts}, indent=1))


def _computed(network: Path, full: ir.Model, cut: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the names of the layers that a step computes which reuses features, and the bit operations that it saves.

    Attention products do not belong to layers; as many of them count as the graph still has of all.
    """
    traced = TracedNetwork.load(network)
    costs = {layer.name: layer.macs * FULL_BITS**2 for layer in traced.layers}
    saved = 1.0
    if record is not None:
        costs, saved = {layer["name"]: layer["bit_operations"] for layer in record["layers"]}, record["bit_operations"]["all_saved"]
    whole = traced.macs * FULL_BITS**2
    reuse = cut_features(full, cut).reuse.graph
    layers = [name for name in costs if name in weighted_nodes(reuse)]
    elsewhere = max(whole / saved - sum(costs.values()), 0.0) * _products(reuse) / max(_products(full.graph), 1)
    return {"layers": layers, "bit_operations_saved_all": whole / (sum(costs[name] for name in layers) + elsewhere)}


def _share(traced: Path, model: ir.Model, cut: str) -> float:
    """Return the share of the multiply-accumulates that a step computes which reuses features."""
    return 1 / float(_computed(traced, model, cut, None)["bit_operations_saved_all"])


def _products(graph: ir.Graph) -> int:
    """Return the number of attention products: products of two values that are both computed."""
    weighted = {node for nodes in weighted_nodes(graph).values() for node in nodes}
    return sum(node.op_type in ("MatMul", "Attention") and node not in weighted for node in graph)
