"""Measure the cost of the statistics: time relative to the network evaluations alone, and memory against the number of samples.

    python -m tools.studies.statistics_cost build/digits --samples 64,4096 --steps 4

Each walk runs in its own process. Memory is the process's anonymous memory, read after every step. The states and outputs do not count:
they lie in memory-mapped files, whose pages the system may reclaim at any time.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from calib.walk.fit import FitNetworks, fit_on_walk
from engines.apps.bench.timed_engine import Stopwatch, timed
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser
from engines.networks.engine_denoiser import EngineDenoiser
from ptqd_export.schedules.add_schedule import measured_networks
from ptqd_export.schedules.settings import ScheduleRequest, resolve

HEADER = ("samples", "steps", "walk, s", "networks, s", "walk / networks", "own memory, MiB")


def under_stopwatch(measured: FitNetworks, watch: Stopwatch) -> FitNetworks:
    """Return the same networks with every call timed by `watch`."""
    networks: dict[str, Denoiser] = {}
    for name, network in measured.networks.items():
        assert isinstance(network, EngineDenoiser)
        networks[name] = timed(network, watch)
    return replace(measured, networks=networks)


def own_memory() -> float:
    """Anonymous memory of this process, in MiB."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def walk_once(bundle: Bundle, samples: int, steps: int) -> tuple[float, ...]:
    """Take one walk; return its seconds, the seconds spent in its networks, and its peak anonymous memory in MiB."""
    watch, most = Stopwatch(), 0.0

    def look() -> None:
        nonlocal most
        most = max(most, own_memory())

    settings = resolve(ScheduleRequest(policy="snr", samples=samples, steps=steps, fit="walk"), bundle)
    networks = under_stopwatch(measured_networks(bundle, settings, settings.fit.batch_size), watch)
    begin = time.perf_counter()
    fit_on_walk(networks, settings.fit, bundle.folder / "local", look)
    return time.perf_counter() - begin, watch.seconds, most


def row(samples: int, steps: int, figures: tuple[float, ...]) -> tuple[str, ...]:
    """Format one row of the table."""
    walk, networks, memory = figures
    return str(samples), str(steps), f"{walk:.1f}", f"{networks:.1f}", f"{walk / networks:.3f}", f"{memory:.0f}"


def in_a_process(bundle: Path, samples: int, steps: int) -> str:
    """Take one walk in a new process and return its table row."""
    command = [
        sys.executable,
        "-m",
        "tools.studies.statistics_cost",
        str(bundle),
        "--samples",
        str(samples),
        "--steps",
        str(steps),
        "--here",
    ]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.rstrip("\n")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--samples", required=True, help="Comma-separated numbers of samples, such as 64,4096; each gets its own walk.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of every walk.")
@click.option("--here", is_flag=True, hidden=True)
def main(bundle: Path, samples: str, steps: int, here: bool) -> None:
    counts = [int(count) for count in samples.split(",")]
    if here:
        (count,) = counts
        click.echo(f"| {' | '.join(row(count, steps, walk_once(Bundle.open(bundle), count, steps)))} |")
        return
    click.echo(f"| {' | '.join(HEADER)} |\n|{' ---: |' * len(HEADER)}")
    for count in counts:
        click.echo(in_a_process(bundle, count, steps))


if __name__ == "__main__":
    main()
