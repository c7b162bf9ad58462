"""How many images are decoded at a time, and what that takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptqd_export.stages.network.decoding import images_at_a_time


@pytest.mark.parametrize(
    ("shape", "batch"),
    [((3, 512, 512), 1), ((3, 1024, 1024), 1), ((3, 256, 256), 4), ((3, 8, 8), 64), ((1, 512, 256), 2), ((3, 384, 384), 1)],
)
def test_images_fill_no_more_memory_than_one_of_512_pixels_squared(shape: tuple[int, ...], batch: int) -> None:
    assert images_at_a_time(shape) == batch


ROOT = Path(__file__).parents[4]


def _run(*arguments: str) -> list[float]:
    """The figures that a process of its own prints."""
    command = [sys.executable, "-m", "tests.ptqd_export.stages.decoder_memory", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_a_batch_of_published_first_stages_takes_bounded_memory(tmp_path: Path) -> None:
    """VQ-f4 of LDM-4 at 256 x 256, KL-f8 of Stable Diffusion at 512 x 512: one image, and the batch that a bundle says."""
    peaks = {}
    for name, side in (("vq-f4", 256), ("kl-f8", 512)):
        (tmp_path / name).mkdir()
        _run("write", name, str(tmp_path / name))
        for batch in sorted({1, images_at_a_time((3, side, side))}):
            decoded, seconds, peaks[name, batch] = _run("decode", str(tmp_path / name), str(batch))
            sys.stderr.write(f"{name}, {batch} images of {side} x {side}: {peaks[name, batch]:.2f} GB, {seconds:.1f} s\n")
            assert decoded == side
    assert peaks["vq-f4", 1] < peaks["vq-f4", 4] < peaks["kl-f8", 1] < 2.5
