"""Report a bisection: as a table for people, and as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from engines.apps.compare.compare_result import infinite
from engines.host.files import write_text
from engines.terminal.fitting_table import FittingTable, result_console
from ptqd_export.commands.bisect import BisectResult

REFERENCES = {"oracle": "the same graph as written", "fp32": "full precision"}


def write_report(result: BisectResult, path: Path) -> None:
    """Write the fields of `BisectResult` as a JSON object."""
    write_text(path, json.dumps(asdict(result), indent=1, allow_nan=False) + "\n")


def print_report(result: BisectResult, worst: int) -> None:
    """Print the worst layers and the first layer that departs to standard output, in the order of the graph."""
    console = result_console()
    console.print(_table(result, worst))
    console.print(_verdict(result), highlight=False, soft_wrap=True)


def _table(result: BisectResult, worst: int) -> FittingTable:
    title = f"{result.precision} against {REFERENCES[result.against]}: step {result.step} (timestep {result.timestep:g})"
    table = FittingTable(title, ("place", "layer", "SNR", "largest error"), left=("layer",), folded=("layer",))
    ranked = sorted(range(len(result.layers)), key=lambda place: infinite(result.layers[place].snr_db))
    for place in sorted({*ranked[:worst], *(place for place, layer in enumerate(result.layers) if layer.layer == result.first)}):
        layer = result.layers[place]
        snr = "same" if layer.snr_db is None else f"{layer.snr_db:.2f} dB"
        style = "bold" if layer.layer == result.first else None
        table.add_row(f"{place + 1} of {len(result.layers)}", layer.layer, snr, f"{layer.max_absolute_error:.3g}", style=style)
    return table


def _verdict(result: BisectResult) -> str:
    if result.first is None:
        verdict = f"no layer is below {result.min_snr_db:g} dB"
    else:
        verdict = f"first below {result.min_snr_db:g} dB: {result.first}"
    others = f"; not in the reference: {', '.join(result.only_here)}" if result.only_here else ""
    return f"{verdict}{others}"
