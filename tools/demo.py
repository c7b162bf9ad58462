"""`make demo`: build the coloured digits at W8A8 and W4A8, sample them, and show what quantization costs and what the corrections recover.

    python -m tools.demo

Writes two pictures to `out/` and prints one table. `samples/grid.png` has samples drawn with the precisions that the schedule chose;
`comparison.png` has the same samples in full precision and at W4A8, uncorrected and corrected.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engines.apps.pictures.images import save_png, to_pixels
from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.host.machine import cores, machine_name, processor
from engines.untrusted.external_data import graph_files
from ptqd_export.records.times_file import TIMES, read_times
from tools.labelled_rows import draw_rows
from tools.quality import SEED, Study, psnrs, quantized

PLAN = Path("tools/coloured/plan.json")
BUNDLE = Path("build/coloured")
OUTPUT = Path("out")
SAMPLES = 64
SHOWN = 8
KINDS = "uncorrected", "corrected"


def main() -> None:
    _run("ptqd-export", "build", "--plan", str(PLAN))
    _run("ptqd-run", "sample", str(BUNDLE), "--num", str(SAMPLES), "--seed", str(SEED), "--output", str(OUTPUT / "samples"), "--overwrite")
    bundle = Bundle.open(BUNDLE)
    study = Study(bundle, SAMPLES)
    reference = study.draw("fp32", corrected=False)
    drawn = {name: (study.draw(name, corrected=False), study.draw(name, corrected=True)) for name in quantized(bundle)}
    picture = OUTPUT / "comparison.png"
    save_png(draw_rows(_shown(reference, drawn)), picture)
    Console().print(demo_table(bundle, reference, drawn))
    Console().print(f"pictures: {OUTPUT}/samples/grid.png and {picture}", highlight=False)


def _run(*command: str) -> None:
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True)


def _shown(reference: Float32, drawn: Mapping[str, tuple[Float32, Float32]]) -> dict[str, NDArray[np.uint8]]:
    """Return the first samples in full precision and at the lowest precision, by label."""
    lowest, both = list(drawn.items())[-1]
    rows = {"float32": reference} | {f"{lowest.upper()}\n{kind}": images for kind, images in zip(KINDS, both, strict=True)}
    return {label: to_pixels(images[:SHOWN]) for label, images in rows.items()}


def demo_table(bundle: Bundle, reference: Float32, drawn: Mapping[str, tuple[Float32, Float32]]) -> Table:
    """Return the table of all precisions.

    Args:
        bundle: bundle whose steps were timed on this machine.
        reference: samples in full precision, [N, 3, H, W].
        drawn: the same samples by precision, uncorrected and corrected.
    """
    times = read_times(bundle.folder / "local" / machine_name() / TIMES)
    table = Table(
        title=f"{len(reference)} samples, the same seeds, on {processor()}, {cores()} cores",
        caption=f"time per step: batch {times.batch}; PSNR and colour error: against the same samples in float32; "
        "pooled PSNR: of the mean squared error of all images; "
        "colour error: distance between the mean colours of two images, in levels of 0 to 255",
    )
    table.add_column("precision")
    for column in ("size", "bit ops\nsaved", "time per step", "pooled\nPSNR", "colour\nerror"):
        table.add_column(column, justify="right")
    table.add_row("float32", *_cost(bundle, "fp32", times.milliseconds_a_step), "-", "-")
    for name, both in drawn.items():
        for kind, images in zip(KINDS, both, strict=True):
            quality = psnrs(images, reference)[0], f"{colour_error(images, reference):.1f}"
            table.add_row(f"{name.upper()} {kind}", *_cost(bundle, name, times.milliseconds_a_step), *quality)
    return table


def _cost(bundle: Bundle, precision: str, times: Mapping[str, float]) -> tuple[str, str, str]:
    """Return the cells of a precision's size, bit operations and time per step."""
    file_bytes = sum(file.stat().st_size for file in graph_files(bundle.verified_graph(precision)))
    saved = bundle.manifest.precisions[precision].bit_operations_saved_all
    return f"{file_bytes / 1e6:.1f} MB", f"{saved:.1f}x", f"{times[precision]:.1f} ms, {times['fp32'] / times[precision]:.2f}x"


def colour_error(images: Float32, reference: Float32) -> float:
    """Return how far the mean colour of an image is from its reference's, averaged over the images.

    Args:
        images: [N, 3, H, W] in [-1, 1]; values beyond are clipped.
        reference: the same samples in full precision.

    Returns:
        Euclidean distance in RGB, in levels of 0 to 255.
    """
    shift = (images.clip(-1, 1) - reference.clip(-1, 1)).mean(axis=(2, 3), dtype=np.float64)
    return float(np.linalg.norm(127.5 * shift, axis=1).mean())


if __name__ == "__main__":
    main()
