"""Measure the memory of a build: the peak of every stage, for a network of a published shape with random weights.

    python -m tools.studies.build_memory build/memory --parameters 400 --precisions w8a8
    python -m tools.studies.build_memory build/memory-sdxl --model sdxl

Memory is that of the process, read twenty times a second. Own memory is anonymous; pages of mapped files count apart, because
the system may drop them at any time and read them again. Bytes per parameter are counted from what the process held when the build began.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tools.bench.memory import memory_mib
from tools.studies.large_models import CONDITIONS, MODEL, LargeModel, sd3, sdxl

if TYPE_CHECKING:
    from ptqd_export.stages.reporter import BuildProgress

SECONDS = 0.05
"""Time between two readings."""

STOPPED = 137
FIRST, LAST = "load", "report"

HEADER = ("stage", "seconds", "own memory, GB", "bytes per parameter", "with mapped pages, GB")


def write_plan(folder: Path, model: LargeModel, precisions: list[str]) -> Path:
    """Write the smallest plan that runs every stage. The search for scales takes time, not memory: they are the quickest to find."""
    plan = {
        "model": {"path": MODEL, "conditions": CONDITIONS, **model.model},
        "sampler": model.sampler,
        "precisions": precisions,
        "steps": {"policy": "fixed", "precisions": [precisions[-1]]},
        "calibration": {"samples": 2, "batch_size": 1, "activation_samples": 2},
        "quantization": {"weight_scale": "max", "activation_scale": "max"},
        "correction": {"mode": "none"},
        "target": {"name": "onnxruntime", "threads": 2, "benchmark_batch": 1},
        "output": "bundle",
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


@dataclass
class Peak:
    """Peaks in bytes while a stage ran, and its seconds."""

    own: int = 0
    resident: int = 0
    seconds: float = 0.0


@dataclass
class Watch:
    """Reads the memory of this process in a thread of its own, and keeps the peaks of every stage.

    Attributes:
        limit: bytes of own memory at which the process ends itself at once.
        stages: peaks by stage; several runs of one name count as one.
    """

    limit: int
    stages: dict[str, Peak] = field(default_factory=lambda: {FIRST: Peak()})
    _stage: str = FIRST
    _begin: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def __call__(self, progress: BuildProgress) -> None:
        """Take the progress of a build."""
        if progress.stage != self._stage:
            self.enter(progress.stage)

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        now = time.monotonic()
        self.stages[self._stage].seconds += now - self._begin
        self.stages.setdefault(stage, Peak())
        self._stage, self._begin = stage, now

    def _read(self) -> None:
        while True:
            own, resident = process_memory()
            peak = self.stages[self._stage]
            peak.own, peak.resident = max(peak.own, own), max(peak.resident, resident)
            if own > self.limit:
                sys.stderr.write(f"stopped in stage {self._stage}: {own / 1e9:.1f} GB of own memory\n")
                os._exit(STOPPED)
            time.sleep(SECONDS)


def process_memory() -> tuple[int, int]:
    """Return the anonymous and the resident memory of this process in bytes."""
    return int(memory_mib("RssAnon") * 2**20), int(memory_mib("VmRSS") * 2**20)


def table(stages: Mapping[str, Peak], before: int, count: int) -> str:
    """Return a row for every stage.

    Args:
        stages: peaks by stage.
        before: bytes of own memory when the build began.
        count: parameters of the network.
    """
    rows = [HEADER, ("---", *["---:"] * (len(HEADER) - 1))]
    for name, peak in stages.items():
        own, resident = f"{peak.own / 1e9:.2f}", f"{peak.resident / 1e9:.2f}"
        rows.append((name, f"{peak.seconds:.0f}", own, f"{(peak.own - before) / count:.2f}", resident))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", "name", type=click.Choice(["sd3", "sdxl"]), default="sd3", show_default=True, help="Whose shape the network has.")
@click.option(
    "--parameters", "millions", type=click.IntRange(min=1), default=2400, show_default=True, help="Millions of parameters of sd3."
)
@click.option("--precisions", default="w8a8", show_default=True, help="Comma-separated precisions.")
@click.option("--limit", type=float, default=17.0, show_default=True, help="End the build at this own memory, in GB.")
@click.option("--write", is_flag=True, hidden=True)
def main(folder: Path, name: str, millions: int, precisions: str, limit: float, *, write: bool) -> None:
    model = sdxl() if name == "sdxl" else sd3(millions)
    if write:
        model.write(folder)
        return
    if not (folder / CONDITIONS).exists():  # in a process of its own, whose memory does not count
        folder.mkdir(parents=True, exist_ok=True)
        chosen = ["--model", name, "--parameters", str(millions), "--write"]
        subprocess.run([sys.executable, "-m", "tools.studies.build_memory", str(folder), *chosen], check=True)
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build

    plan, watch = load_plan(write_plan(folder, model, precisions.split(","))), Watch(int(1e9 * limit))
    before, _ = process_memory()
    watch.start()
    try:
        run_build(plan, on_progress=watch)
    finally:
        watch.enter(LAST)
        click.echo(table(watch.stages, before, model.parameters(folder)))


if __name__ == "__main__":
    main()
