"""What one engine needs, as ONNX Runtime itself tells: the weights of its graph, and by how much its arena grows for a call."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import import_onnxruntime
from engines.networks.engine_bank import EngineBank
from tools.bench.case import Case

INFORMATION, WARNING = 1, 2
"""Severities: of the arena's messages, and what the runtime prints from on if it is not told otherwise."""

GROWTH = re.compile(r"Extended allocation by (\d+) bytes")
MIB = 2**20


@dataclass(frozen=True)
class EngineMemory:
    """See the module.

    Attributes:
        weights_mib: of the constants in the graph that the runtime executes, its own folding and layouts included.
        activations_mib: that the arena, which grows by what is asked for, took in the first call.
    """

    weights_mib: float
    activations_mib: float

    @property
    def mib(self) -> float:
        return self.weights_mib + self.activations_mib


def engine_memory(case: Case, precision: str) -> EngineMemory:
    """Of an engine of the case's bundle, in a process that has opened no other."""
    engine = EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch)[precision]
    activations = arena_growth(partial(case.call, engine))
    return EngineMemory(weights_bytes(case.bundle.verified_graph(precision)) / MIB, activations / MIB)


def weights_bytes(graph: Path) -> int:
    """Of a graph as the runtime executes it."""
    import onnx_ir as ir  # not with the module: processes whose memory is measured import that

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / graph.name
        OnnxRuntimeEngine(graph, optimized=optimized)
        values = [value.const_value for value in ir.load(optimized).graph.initializers.values()]
        return sum(value.nbytes for value in values if value is not None)


def arena_growth(call: Callable[[], object]) -> int:
    """Bytes that the arena takes while something runs."""
    messages: list[str] = []
    ort = import_onnxruntime()
    ort.set_default_logger_callback(lambda *about: messages.append(about[-1]), INFORMATION)
    try:
        call()
    finally:
        ort.set_default_logger_callback(None)
        ort.set_default_logger_severity(WARNING)
    return sum(int(found[1]) for message in messages if (found := GROWTH.search(message)))
