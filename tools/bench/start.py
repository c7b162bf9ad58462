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

import numpy as np

from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.files import write_text
from engines.network import EngineDenoiser
from tools.bench.case import Case
from tools.bench.memory import memory_mib

PROGRAM = """
import sys, time
from engines.cli import main
from engines.noise import NoiseSource

draw = NoiseSource.start

def marked(self, samples):
    sys.stderr.write(f"{time.time()}\\n")
    return draw(self, samples)

NoiseSource.start = marked
main(sys.argv[1:])
"""
"""`ptqd-run` that tells when the noise of the first batch is drawn: the engines are open then, and the steps follow."""

ROUNDS = 9
MIB = 2**20


@dataclass(frozen=True)
class Start:
    """See the module.

    Attributes:
        seconds: from the start of `ptqd-run sample` until its first batch begins, files in the system's cache; median.
        swap_milliseconds: of a call behind one of another precision, less that of a call behind one of its own; medians.
        peak_mib: of a process that sampled with each precision of the bundle in turn, all loaded.
        before_mib: of that process before the first engine.
        graph_mib: size of the graphs by precision.
        batch: samples of a chain.
    """

    seconds: float
    swap_milliseconds: float
    peak_mib: float
    before_mib: float
    graph_mib: Mapping[str, float]
    batch: int

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Start:
        """Read what `save` wrote."""
        return cls(**json.loads(path.read_text()))


def measure_start(case: Case) -> Start:
    """Everything; each figure from processes of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        before, peak = pool.submit(_memory, case).result()
        swap = pool.submit(_swap_milliseconds, case).result()
    seconds = statistics.median(_start_seconds(case) for _ in range(ROUNDS))
    sizes = {name: _bytes(case.bundle, name) / MIB for name in case.bundle.manifest.precisions}
    return Start(seconds, swap, peak, before, sizes, case.batch)


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


def _memory(case: Case) -> tuple[float, float]:
    """MiB before the first engine and at most."""
    bank, before = _bank(case), memory_mib("VmRSS")
    bank.open(case.bundle.manifest.precisions)
    for precision in case.bundle.manifest.precisions:
        case.sample(bank, precision)
    return before, memory_mib("VmHWM")


def _swap_milliseconds(case: Case) -> float:
    """Of the two cheapest precisions, whose calls it is the largest part of."""
    bank = _bank(case)
    one, other = list(case.bundle.manifest.precisions)[-2:]
    kept: list[float] = []
    swapped: list[float] = []
    for _ in range(1 + ROUNDS):
        for first, second in itertools.product((one, other), repeat=2):
            _call(case, bank[first])
            (kept if first == second else swapped).append(_call(case, bank[second]))
    return 1000 * (statistics.median(swapped[2:]) - statistics.median(kept[2:]))


def _bytes(bundle: Bundle, precision: str) -> int:
    """Of a graph and the weights beside it."""
    graph = bundle.precision(precision).graph
    return sum(record.bytes for name, record in bundle.manifest.files.items() if name in (graph, f"{graph}.data"))


def _call(case: Case, denoiser: EngineDenoiser) -> float:
    """Seconds of a network call."""
    samples = np.arange(case.batch, dtype=np.int64)
    x, rows = case.noise().start(samples), case.rows(samples)
    begin = time.perf_counter()
    denoiser(x, case.schedule.steps[0].timestep, rows)
    return time.perf_counter() - begin
