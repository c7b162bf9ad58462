"""What comes before and between the steps: the start of a process that samples, a swap of engines, memory with all of them loaded."""

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
"""`ptqd-run` that tells when the noise of the first batch is drawn: the engines are open then, and the steps follow."""

ROUNDS = 9


@dataclass(frozen=True)
class Memory:
    """Of a process that sampled with each precision of the bundle in turn, all loaded.

    Attributes:
        before_mib: once Python, its packages and the runtime are imported, before the first engine.
        peak_mib: at most, all of it.
        file_mib: of it pages of files, which processes share, and which the system can take back.
    """

    before_mib: float
    peak_mib: float
    file_mib: float


@dataclass(frozen=True)
class Start:
    """See the module.

    Attributes:
        seconds: from the start of `ptqd-run sample` until its first batch begins, files in the system's cache; median.
        swap_milliseconds: of a call behind one of another precision, less that of a call behind one of its own; medians.
        memory: with every engine loaded.
        engines: what each engine needs by itself, by precision.
        graph_mib: size of the graphs by precision.
        batch: samples of a chain.
    """

    seconds: float
    swap_milliseconds: float
    memory: Memory
    engines: Mapping[str, EngineMemory]
    graph_mib: Mapping[str, float]
    batch: int

    @property
    def largest(self) -> EngineMemory:
        """The engine that needs most."""
        return max(self.engines.values(), key=lambda engine: engine.mib)

    @property
    def against_largest(self) -> float:
        """What the engines took at most, in units of what the largest needs."""
        return (self.memory.peak_mib - self.memory.before_mib) / self.largest.mib

    @property
    def against_all(self) -> float:
        """The same, in units of all weights and the largest engine's activations: one arena serves all engines."""
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
    """Everything; each figure from processes of its own."""
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
    """Of the two cheapest precisions, whose calls it is the largest part of."""
    bank = _bank(case)
    one, other = list(case.bundle.manifest.precisions)[-2:]
    kept: list[float] = []
    swapped: list[float] = []
    for _ in range(1 + ROUNDS):
        for first, second in itertools.product((one, other), repeat=2):
            case.call(bank[first])
            (kept if first == second else swapped).append(case.call(bank[second]))
    return 1000 * (statistics.median(swapped[2:]) - statistics.median(kept[2:]))
