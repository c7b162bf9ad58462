"""Optimizes the graphs of a bundle with ONNX Runtime for this machine, before the first sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.backends.cached_engine import CachedEngine
from engines.backends.choice import on_onnxruntime
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import size_name
from engines.bundle.manifest import NetworkGraphs
from ptqd_export.measuring.trim_heap import trim_heap

DECODER, ENCODER, PREVIEW, CONTROL = "decoder", "encoder", "preview", "control network"


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of a bundle: for a precision, a group of its steps, a piece of its network, or a graph beside it."""

    name: str
    engine: CachedEngine

    @property
    def precision(self) -> str:
        """The precision that the engine belongs to, or the name of a graph beside the network, such as `decoder`."""
        return self.name.partition(" ")[0]


def engine_graphs(bundle: Bundle) -> Mapping[str, Path]:
    """Return the graphs to build engines from, by the engine's name. A network in pieces has one graph per piece, and a precision with
    groups of steps one network per group, which share the pieces that do not take the state. A network has two graphs for each cut where
    a schedule reuses features. The names of further sizes end with them.
    """
    return {f"{name}{ending}": graph for ending, one in with_endings(bundle).items() for name, graph in _graphs(one).items()}


def with_endings(bundle: Bundle) -> dict[str, Bundle]:
    """Return the bundle at each of its sizes, by the ending of the names of its engines; that of the first is empty."""
    first, *further = bundle.at_sizes
    return {"": first, **{f" of {size_name(one.manifest.model.image_size)}": one for one in further}}


def _graphs(bundle: Bundle) -> dict[str, Path]:
    """Return the graphs of one size."""
    used = {bundle.schedule(name).cut for name in bundle.schedules}
    graphs: dict[str, Path] = {}
    for name, record in bundle.manifest.precisions.items():
        files = {_engine_name(name, one): one.graph if one.pieces is None else one.pieces.body for one in record.networks}
        files |= {} if record.pieces is None else {f"{name} {key}": graph for key, graph in record.pieces.embeddings.items()}
        for one in record.networks:
            for cut, made in one.cuts.items():
                if cut in used:
                    whole, rest = (f"{_engine_name(name, one)} at {cut}, {kind}" for kind in ("full", "reuse"))
                    files |= {whole: made.full, rest: made.reuse}
        graphs |= {key: bundle.graph(graph, record.weights_of) for key, graph in files.items()}
    model = bundle.manifest.model
    network = None if model.control is None else model.control.network
    first_stage = ((DECODER, model.decoder), (ENCODER, model.encoder), (PREVIEW, model.preview))
    beside = {name: one for name, one in first_stage if one is not None}
    found = {name: bundle.graph(one.file, one.weights) for name, one in beside.items()}
    return graphs | found | ({} if network is None else {CONTROL: bundle.graph(network.file)})


def _engine_name(precision: str, network: NetworkGraphs) -> str:
    return precision if network.below == math.inf else f"{precision} below timestep {network.below:g}"


def optimize_graphs(bundle: Bundle, on_graph: Callable[[int, int], None] = lambda _done, _all: None) -> list[BuiltEngine]:
    """Optimize the graphs that are not optimized yet, and returns all of them. Returns an empty list if the bundle does not run on ONNX
    Runtime on the CPU. No other process may be writing to the bundle.

    Args:
        bundle: the bundle.
        on_graph: called after every graph with the number of graphs that are optimized, and of all graphs.

    Raises:
        PtqdError: ONNX Runtime refuses a graph, or the disk is full.
    """
    optimized = on_onnxruntime(bundle).optimized
    if optimized is None:
        return []
    graphs, built = engine_graphs(bundle), list[BuiltEngine]()
    for name, graph in graphs.items():
        built.append(BuiltEngine(name, optimized.get(graph)))
        on_graph(len(built), len(graphs))
    optimized.keep(graphs.values())
    trim_heap()
    return built
