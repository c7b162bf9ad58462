"""Measure the costs outside the steps: the start of a sampling process, an engine swap, and the memory with all engines loaded."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.backends.onnxruntime.onnxruntime_session import import_onnxruntime
from engines.host.files import write_text
from engines.networks.engine_bank import EngineBank
from engines.untrusted.external_data import graph_files
from tools.bench.case import Case
from tools.bench.engine_memory import MIB, EngineMemory, engine_memory
from tools.bench.memory import memory_mib

PROGRAM = """
import sys, time
from engines.cli import main
from engines.chain.noise import NoiseSource

draw = NoiseSource.start

def marked(self, samples):
    sys.stderr.write(f"{time.time()}\\n")
    return draw(self, samples)

NoiseSource.start = marked
main(sys.argv[1:])
"""
"""Runs `ptqd-run` and prints the time when the noise of the first batch is drawn: the engines are open by then, and the steps follow."""

ROUNDS = 9


@dataclass(frozen=True)
class Memory:
    """Memory of a process that sampled with each precision of the bundle in turn, with all precisions loaded.

    Attributes:
        before_mib: memory before the first engine, after the imports of Python packages and the runtime.
        peak_mib: peak memory in total.
        file_mib: part of the memory that is file pages, which processes share and the system can reclaim.
    """

    before_mib: float
    peak_mib: float
    file_mib: float


@dataclass(frozen=True)
class Start:
    """Costs of one bundle outside the steps.

    Attributes:
        seconds: median time from the start of `ptqd-run sample` until its first batch begins, with the files in the system's cache.
        swap_milliseconds: median time of a call that follows a call of another precision, minus that of one that follows its own.
        memory: memory with every engine loaded.
        engines: memory that each engine needs by itself, by precision.
        graph_mib: size of each graph, by precision.
        batch: samples per chain.
    """

    seconds: float
    swap_milliseconds: float
    memory: Memory
    engines: Mapping[str, EngineMemory]
    graph_mib: Mapping[str, float]
    batch: int

    @property
    def largest(self) -> EngineMemory:
        """Memory of the engine that needs the most."""
        return max(self.engines.values(), key=lambda engine: engine.mib)

    @property
    def against_largest(self) -> float:
        """Peak memory of all engines, relative to the need of the largest engine."""
        return (self.memory.peak_mib - self.memory.before_mib) / self.largest.mib

    @property
    def against_all(self) -> float:
        """Peak memory of all engines, relative to all weights plus the largest engine's activations: one arena serves all engines."""
        needed = sum(engine.weights_mib for engine in self.engines.values()) + self.largest.activations_mib
        return (self.memory.peak_mib - self.memory.before_mib) / needed

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Start:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        engines = {name: EngineMemory(**engine) for name, engine in content["engines"].items()}
        return cls(**{**content, "memory": Memory(**content["memory"]), "engines": engines})


def measure_start(case: Case) -> Start:
    """Measure everything, each figure in separate processes."""
    precisions = case.bundle.manifest.precisions
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        memory = pool.submit(_memory, case).result()
        swap = pool.submit(_swap_milliseconds, case).result()
        engines = {name: pool.submit(engine_memory, case, name).result() for name in precisions}
    seconds = statistics.median(_start_seconds(case) for _ in range(ROUNDS))
    sizes = {name: sum(file.stat().st_size for file in graph_files(case.bundle.verified_graph(name))) / MIB for name in precisions}
    return Start(seconds, swap, memory, engines, sizes, case.batch)


def _start_seconds(case: Case) -> float:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "sample",
            str(case.bundle.folder),
            "--num",
            "1",
            "--batch-size",
            "1",
            "--seed",
            "0",
            "--format",
            "npz",
            "--output",
            folder,
        ]
        begin = time.time()
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True)
    return float(done.stderr.splitlines()[-1]) - begin


def _bank(case: Case) -> EngineBank:
    return EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch)


def _memory(case: Case) -> Memory:
    bank = _bank(case)
    import_onnxruntime()
    before = memory_mib("VmRSS")
    bank.open(case.bundle.manifest.precisions)
    for precision in case.bundle.manifest.precisions:
        case.sample(bank, precision)
    return Memory(before, memory_mib("VmHWM"), memory_mib("RssFile"))


def _swap_milliseconds(case: Case) -> float:
    """Measure swaps between the two cheapest precisions, where a swap is the largest part of a call."""
    bank = _bank(case)
    one, other = list(case.bundle.manifest.precisions)[-2:]
    kept: list[float] = []
    swapped: list[float] = []
    for _ in range(1 + ROUNDS):
        for first, second in itertools.product((one, other), repeat=2):
            case.call(bank[first])
            (kept if first == second else swapped).append(case.call(bank[second]))
    return 1000 * (statistics.median(swapped[2:]) - statistics.median(kept[2:]))
