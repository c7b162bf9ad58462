"""`make demo`: build the digits bundle, sample it, and show what quantization costs and what the corrections bring back.

    python -m tools.demo

Ends with a table and two pictures in `out/`: `samples/grid.png` (the schedule's own choice of precisions) and `comparison.png` (full
precision, uncorrected and corrected, same seeds, at the lowest precision).
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from engines.arrays import Float32
from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.grid import Tile, draw_grid
from engines.images import to_pixels
from engines.noise import NoiseSource
from engines.sampling import Chain
from tools.digits.recognise import recognised

PLAN = Path("tools/digits/plan.json")
BUNDLE = Path("build/digits")
OUTPUT = Path("out")
SEED = 1
SAMPLES = 200
SHOWN = 12
_LABELS = {"-": "full precision", "off": "uncorrected", "on": "corrected"}


@dataclass(frozen=True)
class Row:
    """Samples of one way to run the bundle, float32 [SAMPLES, 1, 16, 16]."""

    precision: str
    correction: str
    samples: Float32


def main() -> None:
    _run("ptqd-export", "build", "--plan", str(PLAN))
    _run("ptqd-run", "sample", str(BUNDLE), "--num", "64", "--seed", str(SEED), "--classes", "all", "--output", str(OUTPUT / "samples"))
    bundle = Bundle.open(BUNDLE)
    rows = _sample(bundle)
    _run("ptqd-run", "bench", str(BUNDLE))
    lowest = [row for row in rows if row.precision in ("fp32", rows[-1].precision)]
    _draw(lowest, OUTPUT / "comparison.png")
    _print(rows, Console())


def _run(*command: str) -> None:
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True)


def _sample(bundle: Bundle) -> list[Row]:
    """The same sample numbers and classes by every way to run the bundle; full precision first, the lowest precision last."""
    schedule = bundle.schedule()
    bank = EngineBank(bundle, schedule.sampler.guidance, batch=SAMPLES)
    noise = NoiseSource(SEED, bundle.manifest.model.sample_shape)
    numbers = np.arange(SAMPLES, dtype=np.int64)
    rows = [Row("fp32", "-", Chain(schedule, bank, "fp32", corrected=False).sample(noise, numbers, numbers % 10))]
    costs = {name: record.weight_bits * record.activation_bits for name, record in bundle.manifest.precisions.items()}
    for name in [None, *sorted(costs, key=lambda name: -costs[name])[1:]]:
        for corrected in (False, True):
            samples = Chain(schedule, bank, name, corrected).sample(noise, numbers, numbers % 10)
            rows.append(Row(name or "schedule", "on" if corrected else "off", samples))
    return rows


def _draw(rows: list[Row], path: Path) -> None:
    tiles = [
        Tile(pixels, _LABELS[row.correction], f"#{number}") for row in rows for number, pixels in enumerate(to_pixels(row.samples[:SHOWN]))
    ]
    draw_grid(tiles, columns=SHOWN).save(path)


def _print(rows: list[Row], console: Console) -> None:
    reference = rows[0].samples
    labels = np.arange(SAMPLES, dtype=np.int64) % 10
    table = Table(title=f"{SAMPLES} samples each, same seeds")
    for column in ("precision", "correction", "recognised", "PSNR to fp32", "mean", "variance"):
        table.add_column(column, justify="left" if column == "precision" else "right")
    for row in rows:
        psnr = "-" if row is rows[0] else f"{_psnr(row.samples, reference):.1f} dB"
        figures = (f"{recognised(row.samples, labels):.1%}", psnr, f"{row.samples.mean():+.3f}", f"{row.samples.var():.3f}")
        table.add_row(row.precision, row.correction, *figures)
    console.print(table)
    console.print(f"schedule: the precisions that the bundle's schedule chose; see {OUTPUT}/samples/grid.png and {OUTPUT}/comparison.png")


def _psnr(samples: Float32, reference: Float32) -> float:
    """Mean over samples of the PSNR in dB; the peak is 2, from -1 to 1."""
    error = np.square(samples.clip(-1, 1) - reference.clip(-1, 1), dtype=np.float64).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / error)))


if __name__ == "__main__":
    main()
