"""The ablation's results as Markdown tables.

python -m tools.ablation_page build/ablation/digits build/digits-ablation > table.md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np

from engines.bundle import Bundle
from engines.evaluation.confidence import Estimate, Summary, summarize
from engines.evaluation.scores import FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE
from engines.machine import machine_name
from ptqd_export.plan import FULL_PRECISION

HEADER = (
    "correction",
    "FD",
    "FD less FP's (95 %)",
    "sFD",
    "variance / FP's",
    "mean less FP's",
    "PSNR to FP, dB",
)


@dataclass(frozen=True)
class Result:
    """A row as it was stored."""

    label: str
    precision: str | None
    eta: float
    steps: tuple[str, ...]
    figures: Mapping[str, Sequence[Estimate]]

    @classmethod
    def load(cls, path: Path) -> Result:
        stored: dict[str, Any] = json.loads(path.read_text())
        row = stored["row"]
        figures = {name: [_estimate(one) for one in of_seeds] for name, of_seeds in stored["figures"].items()}
        return cls(row["label"], row["precision"], row["eta"], tuple(stored["steps"]), figures)

    def summary(self, name: str) -> Summary:
        """A figure over the seeds."""
        return summarize(self.figures[name])

    def difference(self, other: Result, name: str) -> Summary:
        """The same less another row's, paired by noise."""
        return summarize([mine - its for mine, its in zip(self.figures[name], other.figures[name], strict=True)])


def _estimate(stored: Mapping[str, Any]) -> Estimate:
    return Estimate(stored["value"], np.array(stored["without_block"]))


def page(results: Sequence[Result], bundle: Bundle) -> str:
    """All tables: one for each precision and eta, and one of the mixtures."""
    lines: list[str] = []
    for eta in sorted({result.eta for result in results}, reverse=True):
        of_eta = [result for result in results if result.eta == eta]
        (reference,) = (result for result in of_eta if result.precision == FULL_PRECISION)
        lines += [f"## eta {eta:g}", "", f"Full precision: {_full_precision(reference)}.", ""]
        for precision in dict.fromkeys(result.precision for result in of_eta if result is not reference):
            rows = [result for result in of_eta if result.precision == precision]
            lines += [f"### {_title(precision, bundle)}", "", *_table(rows, reference), ""]
    return "\n".join(lines)


def _full_precision(reference: Result) -> str:
    distance, spatial = (reference.summary(name) for name in (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE))
    return f"FD {_spread(distance)}, sFD {_spread(spatial)}, variance {reference.summary('variance').mean:.4f}"


def _title(precision: str | None, bundle: Bundle) -> str:
    if precision is None:
        return "Mixtures of precisions, signed + variance"
    record = bundle.manifest.precisions[precision]
    times = json.loads((bundle.folder / "local" / machine_name() / "times.json").read_text())["milliseconds_a_step"]
    saved = f"{record.bit_operations_saved:.1f}x fewer bit operations (quantized layers), {record.bit_operations_saved_all:.1f}x (all)"
    return f"{precision.upper()}: {saved}, {times[precision] / times[FULL_PRECISION]:.2f} of full precision's time"


def _table(rows: Iterable[Result], reference: Result) -> Iterator[str]:
    yield "| " + " | ".join(HEADER) + " |"
    yield "| --- |" + " ---: |" * (len(HEADER) - 1)
    for row in rows:
        yield "| " + " | ".join(_cells(row, reference)) + " |"


def _cells(row: Result, reference: Result) -> tuple[str, ...]:
    distance, spatial = (row.summary(name) for name in (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE))
    less = row.difference(reference, FRECHET_DISTANCE)
    ratio = fmean(q.value / f.value for q, f in zip(row.figures["variance"], reference.figures["variance"], strict=True))
    return (
        row.label if row.precision is not None else f"{row.label}: {_counts(row.steps)}",
        _spread(distance),
        f"{less.mean:+.3f} ({less.interval[0]:+.3f} to {less.interval[1]:+.3f})",
        _spread(spatial),
        f"{ratio:.3f}",
        f"{row.difference(reference, 'mean').mean:+.4f}",
        _spread(row.summary("psnr"), 2),
    )


def _counts(steps: Sequence[str]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in Counter(steps).items())


def _spread(summary: Summary, digits: int = 3) -> str:
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.{digits}f}"
    return f"{summary.mean:.{digits}f}{deviation}"


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
def main(results: Path, bundle: Path) -> None:
    files = sorted(results.glob("*.json"), key=lambda file: file.stat().st_mtime)
    click.echo(page([Result.load(file) for file in files], Bundle.open(bundle)))


if __name__ == "__main__":
    main()
