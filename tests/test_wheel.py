"""The wheel, installed for sampling alone: no torch, no onnx, no diffusers, and pictures come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.backends.onnxruntime.onnxruntime_session import saturates

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "scipy", "safetensors")
PACKAGES = ("engines", "calib", "ptqd_export")
PAGE = {f"ptqd_export/report/{name}" for name in ("page.html", "page.css", "sort.js")}
PROBES = {
    f"engines/backends/onnxruntime/{name}" for name in ("saturation_probe.onnx", "convolution_probe.onnx", "convolution_probe.onnx.data")
}
PACKAGE_DATA = {*PROBES, "engines/py.typed", "calib/py.typed", "ptqd_export/py.typed", *PAGE}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what a release holds, so that nothing of an earlier build gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    copy_sources(source)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel and its `cpu` extra."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", str(folder))
    run(str(folder / "bin" / "pip"), "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[cpu]")
    return folder / "bin"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits bundle with little calibration, built here."""
    from ptqd_export.plan import Plan, PlanFile, load_plan
    from ptqd_export.stages.run_build import run_build

    written = load_plan(ROOT / "tools" / "digits" / "plan.json")
    calibration = {"samples": 8, "batch_size": 8, "activation_samples": 64}
    plan = Plan.model_validate(written.plan.model_dump(mode="json") | {"calibration": calibration, "correction": {"mode": "joint"}})
    folder = tmp_path_factory.mktemp("digits") / "bundle"
    run_build(PlanFile(plan, written.folder, folder))
    return folder


def copy_sources(folder: Path) -> None:
    """Every file of the repository that its packages and its metadata are made of."""
    names = ["pyproject.toml", "README.md", "LICENSE"]
    packages = [path for package in PACKAGES for path in (ROOT / package).rglob("*")]
    for path in [*(ROOT / name for name in names), *packages]:
        if path.is_file() and "__pycache__" not in path.parts:
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def run(*command: str, cwd: Path | None = None) -> str:
    """Standard output of a command, run without this interpreter's paths."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names == sources | PACKAGE_DATA


def test_installed_wheel_has_no_framework(installed: Path) -> None:
    program = f"import importlib.util as u, json; print(json.dumps([name for name in {FRAMEWORKS!r} if u.find_spec(name)]))"
    assert json.loads(run(str(installed / "python"), "-c", program)) == []
    packages = {row["name"].lower() for row in json.loads(run(str(installed / "pip"), "list", "--format", "json"))}
    assert {"ptqd-export", "onnxruntime", "numpy"} <= packages
    assert not packages & set(FRAMEWORKS)


def test_installed_wheel_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    program = "from engines.backends.onnxruntime import onnxruntime_session as backend; print(backend.__file__, backend.saturates({}))"
    where, saturated = run(str(installed / "python"), "-c", program, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent)
    assert saturated == str(saturates({})), "the probe came along, and answers as it does here"


def test_installed_wheel_samples_the_digits_bundle(installed: Path, bundle: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(bundle), "--num", "6", "--seed", "1", "--classes", "all", "--output", str(tmp_path / "out")]
    run(str(installed / "ptqd-run"), *arguments, cwd=tmp_path)
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record["rows"] == [0, 1, 2, 3, 4, 5]
    assert record["files"] == [f"{number:08d}.png" for number in range(6)]
    for name in record["files"]:
        with Image.open(tmp_path / "out" / name) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (16, 16)
        assert pixels.min() < 64 < 192 < pixels.max(), "ink and paper"
    assert (tmp_path / "out" / "grid.png").is_file()
