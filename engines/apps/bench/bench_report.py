"""Reports of a benchmark: a table for people and JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engines.apps.bench.bench_result import BenchResult
from engines.host.files import write_text
from engines.terminal.fitting_table import FittingTable, result_console


def write_report(result: BenchResult, path: Path) -> None:
    """Write the fields of `BenchResult` as a JSON object."""
    write_text(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def print_report(result: BenchResult) -> None:
    """Print the table to standard output."""
    console = result_console()
    console.print(_table(result))
    console.print(_notes(result), highlight=False)


def _table(result: BenchResult) -> FittingTable:
    columns = ("precision", "chain", "step", "images/s", f"against {result.baseline}", "outside engines", "load", "steps")
    table = FittingTable(f"{result.processor}, {result.cores} cores", columns, folded=("steps",))
    for name, chain in result.chains.items():
        table.add_row(
            name,
            f"{chain.milliseconds_a_chain:.1f} ms",
            f"{chain.milliseconds_a_step:.2f} ms",
            f"{chain.images_a_second:.1f}",
            f"{chain.speedup:.2f}x",
            f"{chain.outside_engines:.1%}",
            f"{result.load_milliseconds[name]:.0f} ms" if name in result.load_milliseconds else "-",
            ", ".join(f"{count} {precision}" for precision, count in chain.precision_steps.items()),
        )
    return table


def _notes(result: BenchResult) -> str:
    loras = f", with {', '.join(result.loras)}" if result.loras else ""
    return (
        f"chain: batch {result.batch_size}, {result.steps} of {result.schedule_steps} steps, guidance {result.guidance:g}{loras}, "
        f"median of {result.rounds} rounds in turn; outside engines: noise, update, correction, checks\n"
        f"swapping engines: {result.swap_milliseconds:+.1f} ms per chain, compared with the same steps without swaps"
    )
