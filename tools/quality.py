"""Draw the same samples in every way that a bundle can run, and compare their quality.

    python -m tools.quality build/dit --num 1000

Prints two tables. The first has a row for every precision and for the schedule's own choice: the share of samples in which the committed
classifier recognises the requested digit, and their PSNR to the full-precision samples. The second has a row for every step: the
signal-to-noise ratio of the network's output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from engines.apps.evaluate.metrics.paired import image_errors, median_psnr, pooled_psnr
from engines.arrays import Float32, Int64
from engines.bundle.bundle import DEFAULT, Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.networks.decoder import open_decoder
from engines.networks.engine_bank import EngineBank
from tools.training.recognise import recognised

SEED = 1
BATCH = 200


@dataclass(frozen=True)
class Row:
    """Images from one way to run the bundle, float32 [N, C, H, W]; image n shows class n modulo the number of classes."""

    precision: str
    correction: str
    images: Float32


class Study:
    """Draws samples of a bundle on ONNX Runtime.

    Args:
        bundle: bundle of a model that is unconditional, or conditioned on one digit per row.
        count: number of samples; they are always the first ones of `SEED`.
        schedule: name of the schedule whose chain is walked.
    """

    def __init__(self, bundle: Bundle, count: int, schedule: str = DEFAULT) -> None:
        self._schedule = bundle.schedule(schedule)
        self._bank = EngineBank(bundle, self._schedule.sampler.guidance, batch=min(count, BATCH))
        self._decoder = open_decoder(bundle, "onnxruntime")
        self._noise = NoiseSource(SEED, bundle.manifest.model.sample_shape)
        self._numbers = np.arange(count, dtype=np.int64)
        self._quantized = quantized(bundle)

    def rows(self) -> Iterator[Row]:
        """Yield one row for every way to run the bundle, from full precision down to the lowest precision."""
        yield Row("fp32", "-", self.draw("fp32", corrected=False))
        for name in (None, *self._quantized):
            for corrected in (False, True):
                yield Row(name or "schedule", "on" if corrected else "off", self.draw(name, corrected))

    def draw(self, precision: str | None, corrected: bool) -> Float32:
        """Return the images drawn with one precision at every step, or with the schedule's own choice (None)."""
        chain = Chain(self._schedule, self._bank, precision, corrected)
        pieces = batches(self._numbers, BATCH)
        return np.concatenate([self._decoder(chain.sample(self._noise, numbers, digits_of(numbers))) for numbers in pieces])


def quantized(bundle: Bundle) -> list[str]:
    """The bundle's precisions without full precision, in descending order of bit operations."""
    costs = {name: record.weight_bits * record.activation_bits for name, record in bundle.manifest.precisions.items()}
    return sorted(costs, key=lambda name: -costs[name])[1:]


def digits_of(numbers: Int64) -> Int64:
    """The digit that each sample should show."""
    return numbers % 10


def quality_table(rows: list[Row]) -> Table:
    """Table of the sample quality of all rows; the first row is the reference."""
    reference = rows[0].images
    labels = digits_of(np.arange(len(reference), dtype=np.int64))
    table = Table(title=f"{len(reference)} samples each, same seeds")
    for column in ("precision", "correction", "recognised", "pooled PSNR\nto fp32", "median PSNR\nto fp32", "mean", "variance"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    for row in rows:
        distances = ("-", "-") if row is rows[0] else psnrs(row.images, reference)
        figures = (f"{recognised(row.images, labels):.1%}", *distances, f"{row.images.mean():+.3f}", f"{row.images.var():.3f}")
        table.add_row(row.precision, row.correction, *figures)
    return table


def psnrs(images: Float32, reference: Float32) -> tuple[str, str]:
    """Return the pooled PSNR of images and the median of their PSNRs, as cells of a table."""
    errors = image_errors(images, reference)
    return _cell(pooled_psnr(errors)), _cell(median_psnr(errors))


def _cell(decibels: float) -> str:
    return "identical" if math.isinf(decibels) else f"{decibels:.1f} dB"


def step_table(bundle: Bundle) -> Table:
    """Table of the signal-to-noise ratio in dB of every quantized precision's output at every step, uncorrected and corrected."""
    table = Table(title="signal-to-noise ratio of the network's output in dB, uncorrected / corrected")
    table.add_column("step", justify="right")
    table.add_column("timestep", justify="right")
    names = quantized(bundle)
    for name in names:
        table.add_column(name, justify="right")
    records = [json.loads(bundle.path(f"statistics/{bundle.manifest.placement}/{name}.json").read_text())["steps"] for name in names]
    for step in zip(*records, strict=True):
        figures = [f"{record['snr_db']:.1f} / {record['corrected_snr_db']:.1f}" for record in step]
        table.add_row(str(step[0]["step"]), f"{step[0]['timestep']:g}", *figures)
    return table


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--num", default=1000, show_default=True, help="Number of samples in every row.")
@click.option("--schedule", default=DEFAULT, show_default=True, help="Schedule whose chain is walked; the second table is the default's.")
def main(folder: Path, num: int, schedule: str) -> None:
    bundle = Bundle.open(folder)
    console = Console()
    console.print(quality_table(list(Study(bundle, num, schedule).rows())))
    if schedule == DEFAULT:
        console.print(step_table(bundle))


if __name__ == "__main__":
    main()
