"""The paper's experiments as plans: what they ask for, and that it works on checkpoints of the published layouts, cut small."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from engines.cli import main
from ptqd_export.plan import Plan, PlanFile, load_plan
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.models.compvis.published import LAYOUT, SMALL_SIZE, small_checkpoint

ROOT = Path(__file__).parents[2]
PLANS = {path.stem: path for path in sorted((ROOT / "tools" / "paper").glob("*.json"))}
STEPS = 3

EXPERIMENTS = {  # of the paper: model, steps, eta, guidance
    "imagenet-20": ("cin256-v2", 20, 0.0, 3.0),
    "imagenet-250": ("cin256-v2", 250, 1.0, 1.5),
    "bedrooms-200": ("lsun-bedrooms", 200, 1.0, 1.0),
    "churches-200": ("lsun-churches", 200, 0.0, 1.0),
}
PRECISIONS = {"w8a8": {"w8a8"}, "w4a8": {"w4a8"}, "mixed": {"w4a4", "w4a8"}}


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("paper")
    return {model: small_checkpoint(model, folder / model) for model in {model for model, *_ in EXPERIMENTS.values()}}


def _model(plan: Plan) -> str:
    assert plan.model.path is not None
    return Path(plan.model.path).parent.name


def _cut(name: str, small_models: dict[str, Path], folder: Path) -> PlanFile:
    """The plan itself, with another checkpoint, three of its steps and the least calibration."""
    plan: dict[str, Any] = load_plan(PLANS[name]).plan.model_dump(mode="json")
    chosen = plan["steps"]["precisions"]
    if chosen is not None and len(chosen) > 1:
        plan["steps"]["precisions"] = [chosen[at] for at in np.linspace(0, len(chosen) - 1, STEPS).astype(int)]
    plan["model"]["path"] = str(small_models[Path(plan["model"]["path"]).parent.name])
    plan["sampler"]["steps"] = STEPS
    plan["calibration"] |= {"samples": 2, "batch_size": 2, "activation_samples": 4, "device": "cpu"}
    plan["quantization"]["reconstruction"] |= {"samples": 2, "batch_size": 2, "iterations": 1}
    return PlanFile(Plan.model_validate(plan), folder, folder / "bundle")


def test_there_is_a_plan_for_every_row() -> None:
    assert PLANS.keys() == {f"{experiment}-{kind}" for experiment in EXPERIMENTS for kind in PRECISIONS}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_the_experiment_of_its_name(name: str) -> None:
    plan = load_plan(PLANS[name]).plan
    experiment, _, kind = name.rpartition("-")
    found = (_model(plan), plan.sampler.steps, plan.sampler.eta, plan.sampler.guidance)
    assert found == EXPERIMENTS[experiment]
    assert plan.sampler.name == "ddim"
    assert _model(plan) in LAYOUT
    assert set(plan.precisions) == PRECISIONS[kind]
    assert plan.correction.mode == "ptqd"
    assert plan.output.endswith(name)


@pytest.mark.parametrize(("name", "first"), [("imagenet-20-mixed", 5), ("imagenet-250-mixed", 48)])
def test_the_mixed_chains_switch_where_the_paper_does(name: str, first: int) -> None:
    plan = load_plan(PLANS[name]).plan
    assert plan.steps.precisions == ("w4a4",) * first + ("w4a8",) * (plan.sampler.steps - first)


@pytest.mark.parametrize("name", [name for name in PLANS if name.endswith("mixed")])
def test_a_plan_fits_a_checkpoint_of_the_published_layout(name: str, small_models: dict[str, Path], tmp_path: Path) -> None:
    written = load_plan(PLANS[name])
    with_steps = _cut(name, small_models, tmp_path).plan.model_copy(update={"sampler": written.plan.sampler, "steps": written.plan.steps})
    context = BuildContext(PlanFile(with_steps, tmp_path, tmp_path / "bundle"))
    check_build(context)
    spacing = 1000 // written.plan.sampler.steps
    assert context.table.timestep.tolist() == [1 + k * spacing for k in reversed(range(written.plan.sampler.steps))]


def test_the_page_names_every_experiment_and_the_notes_on_the_paper() -> None:
    page = (ROOT / "docs" / "paper.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)-\*` \|(.*)\|$", page, flags=re.MULTILINE))
    assert rows.keys() == EXPERIMENTS.keys()
    for experiment, (_, steps, eta, guidance) in EXPERIMENTS.items():
        assert f"{steps} steps, eta {eta:g} |" in rows[experiment]
        assert rows[experiment].strip().endswith(f"{guidance}" if guidance != 1.0 else "none")
    for figure in ("11.28", "10.05", "8.74", "5.05", "5.37", "5.11", "9.97", "6.44"):
        assert f"| {figure} |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_goes_from_checkpoint_to_images(name: str, small_models: dict[str, Path], tmp_path: Path) -> None:
    plan_file = _cut(name, small_models, tmp_path)
    run_build(plan_file)
    arguments = ["sample", str(plan_file.output_path), "--num", "2", "--seed", "0", "--runtime", "onnxruntime", "--format", "npz"]
    result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "samples")])
    assert result.exit_code == 0, result.output
    (archive,) = (tmp_path / "samples").rglob("*.npz")
    side = SMALL_SIZE * (8 if name.startswith("churches") else 4)
    with np.load(archive) as stored:
        assert stored["images"].shape == (2, 3, side, side)
        assert np.isfinite(stored["samples"]).all()
        assert stored["images"].std() > 0
