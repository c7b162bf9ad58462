"""Format the ablation's results as a Markdown page.

python -m tools.ablation.ablation_page build/ablation/digits build/digits-ablation --title "Ablation: digits" > docs/ablation-digits.md
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from engines.apps.evaluate.metrics.confidence import Summary
from engines.apps.evaluate.scores import FRECHET_DISTANCE, POOLED_PSNR, SPATIAL_FRECHET_DISTANCE
from engines.bundle.bundle import Bundle
from engines.host.machine import machine_name
from ptqd_export.plan import FULL_PRECISION
from tools.ablation.ablation_result import Result
from tools.ablation.ablation_rows import CONTENDERS, OURS, SHIFTED
from tools.ablation.mean_of_db import MEAN_OF_DB

PSNR = ("pooled PSNR to FP, dB", "PSNR to FP, mean of dB")
HEADER = ("correction", "FD", "FD compared with FP's (95 %)", "sFD", "variance / FP's", "mean minus FP's", *PSNR)
INTRODUCTION = """\
All figures behind [what each part is worth](ablation.md) on this model: every precision with every correction. FP is full precision, FD the
Frechet distance and sFD the spatial one. A pooled PSNR is that of the mean squared error of all samples.
Written by `python -m tools.ablation.ablation_page`."""
PAPER = {1.0: "+ variance", 0.0: "+ bias"}
"""Label of the paper's full correction, by eta."""
WORTH = 1.1
"""An uncorrected distance below this multiple of full precision's leaves no meaningful gap to close."""


@dataclass(frozen=True)
class Table:
    """All results of one eta, and the bundle that they belong to."""

    eta: float
    results: Sequence[Result]
    bundle: Bundle

    @cached_property
    def reference(self) -> Result:
        """The result of full precision."""
        (found,) = (result for result in self.results if result.is_full_precision)
        return found

    @property
    def precisions(self) -> list[str]:
        names = dict.fromkeys(result.precision for result in self.results if not result.is_full_precision)
        return [name for name in names if name is not None]

    def rows(self, precision: str | None) -> list[Result]:
        """Results of one precision in the order of the corrections; mixtures (None) in the order in which they were made."""
        labels = [*(contender.label for contender in CONTENDERS[self.eta]), SHIFTED.label]
        rows = [result for result in self.results if result.precision == precision]
        return rows if precision is None else sorted(rows, key=lambda row: labels.index(row.label))

    def row(self, precision: str, label: str) -> Result:
        (found,) = (result for result in self.rows(precision) if result.label == label)
        return found


def page(title: str, results: Sequence[Result], bundle: Bundle) -> str:
    """Return the page: for each eta an overview, a table for each precision, and a table of the mixtures."""
    lines = [f"# {title}", "", INTRODUCTION, ""]
    for eta in sorted({result.eta for result in results}, reverse=True):
        table = Table(eta, [result for result in results if result.eta == eta], bundle)
        lines += [f"## eta {eta:g}", "", _full_precision(table.reference), "", *_overview(table), ""]
        for precision in table.precisions:
            lines += [f"### {_title(precision, table)}", "", *_details(table.rows(precision), table), ""]
        if mixtures := table.rows(None):
            lines += ["### Mixtures of precisions, joint + variance", "", *_details(mixtures, table), ""]
    return "\n".join(lines).rstrip()


def _full_precision(reference: Result) -> str:
    distance, spatial = (reference.summary(name) for name in (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE))
    variance, seeds = reference.summary("variance"), len(distance.values)
    return (
        f"Full precision: FD {_spread(distance)}, sFD {_spread(spatial)}, variance {variance.mean:.4f}; "
        f"{seeds} seeds of {reference.num} samples."
    )


def _overview(table: Table) -> Iterator[str]:
    """Compare the distances that remain without correction, with the paper's correction and with ours."""
    names = ("none", PAPER[table.eta], OURS[table.eta])
    yield from _markdown_head(
        "precision",
        *(f"FD / FP's, {name}" for name in names),
        *(f"gap closed, {name}" for name in names[1:]),
        *(f"{psnr}, {name}" for psnr in ("pooled PSNR", "mean of dB") for name in names),
        *(f"mean minus FP's, {name}" for name in names),
    )
    for precision in table.precisions:
        rows = [table.row(precision, name) for name in names]
        none = rows[0]
        wide = none.ratio(table.reference, FRECHET_DISTANCE) >= WORTH
        yield _markdown(
            precision.upper(),
            *(f"{row.ratio(table.reference, FRECHET_DISTANCE):.3f}" for row in rows),
            *(f"{row.gap_closed(none, table.reference):.0%}" if wide else "-" for row in rows[1:]),
            *(f"{row.summary(figure).mean:.1f} dB" for figure in (POOLED_PSNR, MEAN_OF_DB) for row in rows),
            *(f"{row.difference(table.reference, 'mean').mean:+.4f}" for row in rows),
        )


def _title(precision: str, table: Table) -> str:
    record = table.bundle.manifest.precisions[precision]
    times = json.loads((table.bundle.folder / "local" / machine_name() / "times.json").read_text())["milliseconds_a_step"]
    saved = f"{record.bit_operations_saved:.1f}x fewer bit operations (quantized layers), {record.bit_operations_saved_all:.1f}x (all)"
    return f"{precision.upper()}: {saved}, {times[precision] / times[FULL_PRECISION]:.2f} of full precision's time"


def _details(rows: Iterable[Result], table: Table) -> Iterator[str]:
    yield from _markdown_head(*HEADER)
    for row in rows:
        yield _markdown(*_cells(row, table.reference))


def _cells(row: Result, reference: Result) -> tuple[str, ...]:
    distance, spatial = (row.summary(name) for name in (FRECHET_DISTANCE, SPATIAL_FRECHET_DISTANCE))
    return (
        row.label if row.precision is not None else f"{row.label}: {_counts(row.steps)}",
        _spread(distance),
        _share(row.difference(reference, FRECHET_DISTANCE), reference.summary(FRECHET_DISTANCE).mean),
        _spread(spatial),
        f"{row.ratio(reference, 'variance'):.3f}",
        f"{row.difference(reference, 'mean').mean:+.4f}",
        *(_spread(row.summary(figure), 2) for figure in (POOLED_PSNR, MEAN_OF_DB)),
    )


def _share(difference: Summary, whole: float) -> str:
    low, high = difference.interval or (math.nan, math.nan)
    return f"{difference.mean / whole:+.1%} ({low / whole:+.1%} to {high / whole:+.1%})"


def _counts(steps: Sequence[str]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in Counter(steps).items())


def _spread(summary: Summary, digits: int = 3) -> str:
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.{digits}f}"
    return f"{summary.mean:.{digits}f}{deviation}"


def _markdown_head(*cells: str) -> Iterator[str]:
    yield _markdown(*cells)
    yield "| --- |" + " ---: |" * (len(cells) - 1)


def _markdown(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--title", required=True)
def main(results: Path, bundle: Path, title: str) -> None:
    files = sorted(results.glob("*.json"), key=lambda file: file.stat().st_mtime)
    click.echo(page(title, [Result.load(file) for file in files], Bundle.open(bundle)))


if __name__ == "__main__":
    main()
