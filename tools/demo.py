"""`make demo`: build the digits bundle, sample it, and show what quantization costs and what the corrections recover.

    python -m tools.demo

Prints a table and writes two pictures to `out/`: `samples/grid.png`, drawn with the precisions that the schedule chose, and
`comparison.png`, which compares full precision with the lowest precision, uncorrected and corrected, for the same seeds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich.console import Console

from engines.apps.pictures.grid import Tile, draw_grid
from engines.apps.pictures.images import to_pixels
from engines.bundle.bundle import Bundle
from tools.quality import SEED, Row, Study, quality_table

PLAN = Path("tools/digits/plan.json")
BUNDLE = Path("build/digits")
OUTPUT = Path("out")
SAMPLES = 200
SHOWN = 12
_LABELS = {"-": "full precision", "off": "uncorrected", "on": "corrected"}


def main() -> None:
    _run("ptqd-export", "build", "--plan", str(PLAN))
    _run(
        "ptqd-run", "sample", str(BUNDLE), "--num", "64", "--seed", str(SEED), "--classes", "all",
        "--output", str(OUTPUT / "samples"), "--overwrite",
    )  # fmt: skip
    rows = list(Study(Bundle.open(BUNDLE), SAMPLES).rows())
    _run("ptqd-run", "bench", str(BUNDLE))
    lowest = [row for row in rows if row.precision in ("fp32", rows[-1].precision)]
    _draw(lowest, OUTPUT / "comparison.png")
    console = Console()
    console.print(quality_table(rows))
    console.print(f"schedule: precisions chosen by the bundle's schedule; pictures: {OUTPUT}/samples/grid.png and {OUTPUT}/comparison.png")


def _run(*command: str) -> None:
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True)


def _draw(rows: list[Row], path: Path) -> None:
    tiles = [
        Tile(pixels, _LABELS[row.correction], f"#{number}") for row in rows for number, pixels in enumerate(to_pixels(row.images[:SHOWN]))
    ]
    draw_grid(tiles, columns=SHOWN).save(path)


if __name__ == "__main__":
    main()
