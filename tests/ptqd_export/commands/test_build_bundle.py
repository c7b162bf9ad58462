"""Building from Python: a plan in any form, progress that is told, and the bundle opened afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import engines
import ptqd_export
from engines.errors import UsageError
from ptqd_export.plan import Plan, PlanFile

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.ptqd_export.conftest import Built

ROOT = Path(__file__).parents[3]
CONTENT = {
    "model": {"path": "models/digits"},
    "sampler": {"name": "ddim", "steps": 4},
    "precisions": ["w8a8"],
    "target": {"name": "onnxruntime"},
    "output": "bundle",
}


@pytest.fixture
def builds(own_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> list[tuple[PlanFile, dict[str, Any]]]:
    """What was built. The output folder gets no bundle: it is given as that of `own_tiny`."""
    seen: list[tuple[PlanFile, dict[str, Any]]] = []
    module = ModuleType("ptqd_export.stages.run_build")
    module.__dict__["run_build"] = lambda plan_file, **options: seen.append((plan_file, options))
    monkeypatch.setitem(sys.modules, "ptqd_export.stages.run_build", module)
    monkeypatch.chdir(own_tiny.folder.parent)
    return seen


def test_a_build_reuses_stages_tells_its_progress_and_opens_the_bundle(small_build: Built, tmp_path: Path) -> None:
    resumed = small_build.resumed_in(tmp_path / "again")
    told: list[ptqd_export.BuildProgress] = []
    bundle = ptqd_export.build(resumed.plan, folder=resumed.folder, output=tmp_path / "again", on_progress=told.append)
    finished = {progress.stage: progress.reused for progress in told if progress.finished}
    assert finished["trace"]
    assert finished["statistics"]
    assert isinstance(bundle, engines.OpenBundle)
    assert bundle.folder == tmp_path / "again"
    assert set(bundle.precisions) == {"fp32", "w8a8"}
    np.testing.assert_array_equal(bundle.sample(num=2), engines.open_bundle(small_build.folder).sample(num=2))


def test_paths_of_a_plan_or_dict_are_relative_to_the_folder(builds: list[tuple[PlanFile, dict[str, Any]]]) -> None:
    here = Path.cwd()
    for plan in (CONTENT, Plan.model_validate(CONTENT)):
        assert ptqd_export.build(plan).folder == here / "bundle"
    (here / "elsewhere").mkdir()
    ptqd_export.build(CONTENT, folder="elsewhere", output="bundle")
    assert [plan_file.model_path for plan_file, _ in builds] == [here / "models/digits"] * 2 + [here / "elsewhere/models/digits"]
    assert builds[-1][0].output_path == Path("bundle")


def test_paths_in_a_file_are_relative_to_the_file(builds: list[tuple[PlanFile, dict[str, Any]]], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(CONTENT))
    ptqd_export.build(str(path), folder="ignored", fresh=True)
    ((plan_file, options),) = builds
    assert (plan_file.model_path, plan_file.output_path) == (tmp_path / "models/digits", tmp_path / "bundle")
    assert options == {"fresh": True, "cluster": None, "on_progress": None}


def test_an_invalid_dict_is_refused_with_every_problem(builds: list[tuple[PlanFile, dict[str, Any]]]) -> None:
    with pytest.raises(UsageError, match=r'(?s)The dict is not a valid plan.*precision: unknown key; did you mean "precisions"'):
        ptqd_export.build({"precision": ["w8a8"]})
    assert builds == []


def test_the_package_imports_nothing_until_it_is_used() -> None:
    program = (
        "import sys, ptqd_export\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'engines'} & sys.modules.keys()))\n"
        "plan, build = ptqd_export.Plan, ptqd_export.build\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'diffusers', 'scipy'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_public_names_exist() -> None:
    assert [name for name in ptqd_export.__all__ if getattr(ptqd_export, name, None) is None] == []
    assert ptqd_export.__version__ == engines.__version__
    with pytest.raises(AttributeError, match="no attribute 'bulid'"):
        _ = ptqd_export.bulid


@pytest.mark.parametrize(("module", "name"), [("ptqd_export", "ptqd-export"), ("engines", "ptqd-run")])
def test_packages_run_as_their_commands(module: str, name: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith(f"Usage: {name} [OPTIONS] COMMAND")
