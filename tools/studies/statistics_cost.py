"""What the statistics cost beside the networks that they need: time over the bare evaluations, and memory against the number of samples.

    python -m tools.studies.statistics_cost build/digits --samples 64,4096 --steps 4

Each walk is a process of its own. Memory is what the process holds for itself (anonymous pages), looked at after every step: the states and
outputs lie in memory-mapped files, whose pages the system may take back at any time.
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
    """The same networks, every call timed."""
    networks: dict[str, Denoiser] = {}
    for name, network in measured.networks.items():
        assert isinstance(network, EngineDenoiser)
        networks[name] = timed(network, watch)
    return replace(measured, networks=networks)


def own_memory() -> float:
    """MiB of anonymous pages that this process holds."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def walk_once(bundle: Bundle, samples: int, steps: int) -> tuple[float, ...]:
    """Seconds of a walk, seconds of the networks in it, and the most memory."""
    watch, most = Stopwatch(), 0.0

    def look(_: int) -> None:
        nonlocal most
        most = max(most, own_memory())

    settings = resolve(ScheduleRequest(policy="snr", samples=samples, steps=steps, fit="walk"), bundle)
    networks = under_stopwatch(measured_networks(bundle, settings, settings.fit.batch_size), watch)
    begin = time.perf_counter()
    fit_on_walk(networks, settings.fit, bundle.folder / "local", look)
    return time.perf_counter() - begin, watch.seconds, most


def row(samples: int, steps: int, figures: tuple[float, ...]) -> tuple[str, ...]:
    """A row of the table."""
    walk, networks, memory = figures
    return str(samples), str(steps), f"{walk:.1f}", f"{networks:.1f}", f"{walk / networks:.3f}", f"{memory:.0f}"


def in_a_process(bundle: Path, samples: int, steps: int) -> str:
    """The row of a walk in a process of its own."""
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
@click.option("--samples", required=True, help="Such as 64,4096: one walk each.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Of every walk.")
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
