"""Measure the memory that one engine needs, as reported by ONNX Runtime: the weights of its graph, and its arena's growth in a call."""

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
"""Log severities: that of the arena's messages, and the lowest one that the runtime prints by default."""

GROWTH = re.compile(r"Extended allocation by (\d+) bytes")
MIB = 2**20


@dataclass(frozen=True)
class EngineMemory:
    """Memory that one engine needs.

    Attributes:
        weights_mib: size of the constants in the graph that the runtime executes, after its own folding and layout changes.
        activations_mib: growth of the arena in the first call; the arena grows by exactly the requested sizes.
    """

    weights_mib: float
    activations_mib: float

    @property
    def mib(self) -> float:
        return self.weights_mib + self.activations_mib


def engine_memory(case: Case, precision: str) -> EngineMemory:
    """Measure an engine of the case's bundle; the process must not have opened another engine before."""
    engine = EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch)[precision]
    activations = arena_growth(partial(case.call, engine))
    return EngineMemory(weights_bytes(case.bundle.verified_graph(precision)) / MIB, activations / MIB)


def weights_bytes(graph: Path) -> int:
    """Return the bytes of the weights in a graph as the runtime executes it."""
    import onnx_ir as ir  # not at module level, because processes whose memory is measured import this module

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / graph.name
        OnnxRuntimeEngine(graph, optimized=optimized)
        values = [value.const_value for value in ir.load(optimized).graph.initializers.values()]
        return sum(value.nbytes for value in values if value is not None)


def arena_growth(call: Callable[[], object]) -> int:
    """Return the bytes by which the arena grows during a call."""
    messages: list[str] = []
    ort = import_onnxruntime()
    ort.set_default_logger_callback(lambda *about: messages.append(about[-1]), INFORMATION)
    try:
        call()
    finally:
        ort.set_default_logger_callback(None)
        ort.set_default_logger_severity(WARNING)
    return sum(int(found[1]) for message in messages if (found := GROWTH.search(message)))
