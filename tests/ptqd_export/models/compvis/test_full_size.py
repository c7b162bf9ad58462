"""The paper's largest model at its full size: from a checkpoint to a bundle, in bounded memory."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from tests.ptqd_export.models.compvis.published import layout

ROOT = Path(__file__).parents[4]


def _run(half: str, folder: Path) -> str:
    """In a process of its own, on two cores; what it says of its stages goes to the terminal."""
    command = [sys.executable, "-m", "tests.ptqd_export.models.compvis.full_size", half, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment).stdout


@pytest.mark.slow
def test_ldm_4_imagenet_of_400_million_parameters_is_built_within_three_times_its_weights(tmp_path: Path) -> None:
    _run("write", tmp_path)
    peak = float(_run("build", tmp_path).splitlines()[-1])
    shapes = (shape for name, shape in layout("cin256-v2").items() if name.startswith(("model.", "cond_stage_model.")))
    weights = 4 * sum(math.prod(shape) for shape in shapes) / 1e9
    sys.stderr.write(f"{weights:.2f} GB of float32 weights, peak {peak:.2f} GB\n")
    assert 1.6 < weights < 1.61
    assert peak <= 3 * weights + 2
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.model.sample_shape == (3, 64, 64)
    sizes = {name: _bytes(tmp_path / "bundle" / "graphs" / "onnxruntime", name) / 1e9 for name in ("fp32", "w8a8", "w4a8")}
    assert sizes["fp32"] == pytest.approx(weights, rel=0.01)
    assert sizes["w8a8"] < 0.27 * sizes["fp32"]
    assert sizes["w4a8"] < 0.15 * sizes["fp32"]


def _bytes(folder: Path, precision: str) -> int:
    """Of a graph and of the data beside it."""
    return sum(path.stat().st_size for path in folder.glob(f"{precision}.onnx*"))
