"""Format the ablation's results as a Markdown page.

python -m tools.ablation.ablation_page build/ablation/digits build/digits-ablation --title "Ablation: digits" > docs/ablation-digits.md
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from tools.ablation.ablation_rows import AUTO, SETTINGS, Setting
from tools.ablation.mean_of_db import MEAN_OF_DB

PSNR = ("pooled PSNR to FP, dB", "PSNR to FP, mean of dB")
HEADER = ("correction", "FD", "FD compared with FP's (95 %)", "sFD", "variance / FP's", "mean minus FP's", *PSNR)
INTRODUCTION = """\
All figures behind [what each part is worth](ablation.md) on this model: every precision with every correction. FP is full precision, FD the
Frechet distance and sFD the spatial one. A pooled PSNR is that of the mean squared error of all samples.
Written by `python -m tools.ablation.ablation_page`."""
WORTH = 1.1
"""An uncorrected distance below this multiple of full precision's leaves no meaningful gap to close."""


@dataclass(frozen=True)
class Table:
    """All results of one setting, and the bundle that they belong to."""

    setting: Setting
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
        labels = [contender.label for contender in self.setting.contenders]
        rows = [result for result in self.results if result.precision == precision]
        return rows if precision is None else sorted(rows, key=lambda row: labels.index(row.label))

    def row(self, precision: str, label: str) -> Result:
        (found,) = (result for result in self.rows(precision) if result.label == label)
        return found


def page(title: str, results: Sequence[Result], bundle: Bundle) -> str:
    """Return the page: for each setting an overview, a table for each precision, and a table of the mixtures."""
    lines = [f"# {title}", "", INTRODUCTION, ""]
    for name in dict.fromkeys(result.setting for result in results):
        table = Table(SETTINGS[name], [result for result in results if result.setting == name], bundle)
        lines += [f"## {table.setting.title}", "", _full_precision(table.reference), "", *_overview(table), ""]
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
    """Compare what remains without correction, with the paper's correction, with ours and with the chosen one."""
    names = ("none", table.setting.paper, table.setting.ours, AUTO)
    rows = {precision: [table.row(precision, name) for name in names] for precision in table.precisions}
    yield from _distances(names, rows, table.reference)
    yield ""
    yield from _nearness(names, rows)


def _distances(names: Sequence[str], rows: Mapping[str, Sequence[Result]], reference: Result) -> Iterator[str]:
    yield from _markdown_head(
        "precision",
        *(f"FD / FP's, {name}" for name in names),
        *(f"gap closed, {name}" for name in names[1:]),
        *(f"mean minus FP's, {name}" for name in names),
    )
    for precision, of_names in rows.items():
        none = of_names[0]
        wide = none.ratio(reference, FRECHET_DISTANCE) >= WORTH
        yield _markdown(
            precision.upper(),
            *(f"{row.ratio(reference, FRECHET_DISTANCE):.3f}" for row in of_names),
            *(f"{row.gap_closed(none, reference):.0%}" if wide else "-" for row in of_names[1:]),
            *(f"{row.difference(reference, 'mean').mean:+.4f}" for row in of_names),
        )


def _nearness(names: Sequence[str], rows: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """Compare the PSNR to full precision, and say by how much the chosen correction is above none and the paper's."""
    yield from _markdown_head(
        "precision",
        *(f"{psnr}, {name}" for psnr in ("pooled PSNR", "mean of dB") for name in names),
        *(f"pooled, {AUTO} minus {name} (95 %)" for name in names[:2]),
    )
    for precision, of_names in rows.items():
        yield _markdown(
            precision.upper(),
            *(f"{row.summary(figure).mean:.1f} dB" for figure in (POOLED_PSNR, MEAN_OF_DB) for row in of_names),
            *(_decibels(of_names[-1].difference(row, POOLED_PSNR)) for row in of_names[:2]),
        )


def _decibels(difference: Summary) -> str:
    low, high = difference.interval or (math.nan, math.nan)
    return f"{difference.mean:+.2f} dB ({low:+.2f} to {high:+.2f})"


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
