"""The paper's largest model at its full size: built in bounded memory, and past checks that notice one wrong layer."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from tests.ptqd_export.graph.checks.planted_faults import FAULTS
from tests.ptqd_export.models.compvis.published import layout

ROOT = Path(__file__).parents[4]


def _run(half: str, folder: Path) -> str:
    """In a process of its own, on two cores; what it says of its stages goes to the terminal."""
    command = [sys.executable, "-m", "tests.ptqd_export.models.compvis.full_size", half, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Folder with the finished build, and the build's peak memory in GB."""
    folder = tmp_path_factory.mktemp("full_size")
    _run("write", folder)
    return folder, float(_run("build", folder).splitlines()[-1])


@pytest.mark.slow
def test_ldm_4_imagenet_of_400_million_parameters_is_built_within_three_times_its_weights(built: tuple[Path, float]) -> None:
    folder, peak = built
    shapes = (shape for name, shape in layout("cin256-v2").items() if name.startswith(("model.", "cond_stage_model.")))
    weights = 4 * sum(math.prod(shape) for shape in shapes) / 1e9
    sys.stderr.write(f"{weights:.2f} GB of float32 weights, peak {peak:.2f} GB\n")
    assert 1.6 < weights < 1.61
    assert peak <= 3 * weights + 2
    bundle = Bundle.open(folder / "bundle")
    assert bundle.manifest.model.sample_shape == (3, 64, 64)
    sizes = {name: _bytes(folder / "bundle" / "graphs" / "onnxruntime", name) / 1e9 for name in ("fp32", "w8a8", "w4a8")}
    assert sizes["fp32"] == pytest.approx(weights, rel=0.01)
    assert sizes["w8a8"] < 0.27 * sizes["fp32"]
    assert sizes["w4a8"] < 0.15 * sizes["fp32"]


@pytest.mark.slow
def test_one_wrong_layer_of_400_million_parameters_is_refused_by_name(built: tuple[Path, float]) -> None:
    """By the check that the build runs, at the build's two states; the graph as it was built passes.

    Noise that is 10 % higher passes at two states: of such a network, four states show it.
    """
    outcome, peak = _run("faults", built[0]).splitlines()
    said: dict[str, str] = json.loads(outcome)
    assert said.pop("none") == ""
    assert "The noise of w8a8.onnx as it runs is not the oracle's" in said.pop("noise 50 % higher")
    assert said.keys() == FAULTS.keys()
    for name, complaint in said.items():
        assert "w8a8.onnx does not compute what its oracle computes" in complaint
        assert f"unet.{FAULTS[name].layer} differs" in complaint
    assert float(peak) < 8


def _bytes(folder: Path, precision: str) -> int:
    """Of a graph and of the data beside it."""
    return sum(path.stat().st_size for path in folder.glob(f"{precision}.onnx*"))
