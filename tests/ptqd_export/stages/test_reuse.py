"""Builds whose steps reuse deep features: weights that are stored once, statistics of their own, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from calib.walk.reuse_errors import MOST_AGE
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_bank import EngineBank
from ptqd_export.commands.measure_runtimes import measure_runtimes
from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.stages.fit import budget as fit_budget
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.whole_builds import FinishedStages, changed, portable, remade_stages, sample

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

CUT = "skip_1"
REUSE: dict[str, Any] = {
    "precisions": ["w8a8", "w4a8"],
    "correction": {"mode": "auto"},
    "reuse": {"cuts": [CUT]},
    "steps": {"reuse": {"every": 2}},
}


@pytest.fixture(scope="module")
def reusing(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle whose odd steps reuse features. Tests must not modify it."""
    folder = tmp_path_factory.mktemp("reusing") / "bundle"
    run_build(changed(class_build, folder, **REUSE))
    return folder


def test_graphs_of_a_cut_read_the_weights_of_the_whole(reusing: Path) -> None:
    for name, record in Bundle.open(reusing).manifest.precisions.items():
        whole = reusing / record.graph
        assert {path.name for path in whole.parent.glob(f"{name}*.data")} == {f"{name}.onnx.data"}
        weights = {one.name: one for one in onnx.load(whole, load_external_data=False).graph.initializer}
        nodes = dict[str, int]()
        for kind in ("full", "reuse"):
            graph = onnx.load(reusing / getattr(record.cuts[CUT], kind), load_external_data=False).graph
            nodes[kind] = sum(node.op_type == "Conv" for node in graph.node)
            assert len(graph.SerializeToString()) < (reusing / record.graph).stat().st_size + 1000
            for one in graph.initializer:
                assert list(one.external_data) == list(weights[one.name].external_data)
        assert 0 < nodes["reuse"] < nodes["full"]
        assert record.cuts[CUT].bit_operations_saved_all > record.bit_operations_saved_all


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "w4a8"])
def test_reused_features_of_the_same_state_change_no_bit(reusing: Path, precision: str) -> None:
    bank = EngineBank(Bundle.open(reusing), 1.5, batch=2)
    network, x, rows = bank[f"{precision}+{CUT}"], np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32), np.array([0, 2])
    assert isinstance(network, CutEngines)
    out, kept = network.keep(x, 500.0, rows)
    np.testing.assert_array_equal(network.reuse(x, 500.0, rows, kept), out)
    np.testing.assert_array_equal(bank[precision](x, 500.0, rows), out)


def test_schedule_and_statistics_have_the_steps_that_reuse(reusing: Path) -> None:
    bundle = Bundle.open(reusing)
    schedule = bundle.schedule()
    assert [step.reuse for step in schedule.steps] == [None, CUT, None, CUT]
    assert {one.chain for one in schedule.judged} >= {None, "w8a8"}
    for name in ("w8a8", "w4a8"):
        stored = json.loads((reusing / f"statistics/onnxruntime/{name}+{CUT}.json").read_text())
        whole = json.loads((reusing / f"statistics/onnxruntime/{name}.json").read_text())
        assert [step["step"] for step in stored["steps"]] == [1, 3]
        assert [step["step"] for step in whole["steps"]] == [0, 1, 2, 3]
        assert 0 < len(stored["layers"]) < len(whole["layers"])
        assert stored["steps"][1]["snr_db"] < whole["steps"][3]["snr_db"]
    own, corrected = sample(reusing), sample(reusing, corrected=False)
    assert np.abs(own - corrected).max() > 0
    assert np.abs(own - sample(reusing, precision="w8a8")).max() > 0
    page = (reusing / "report/index.html").read_text()
    assert f"w8a8+{CUT}" in page or f"w4a8+{CUT}" in page
    assert "A low cell is a step that reuses features" in page


def test_every_runtime_is_checked_along_the_chain_that_reuses(reusing: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reusing, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages")))
    found = measure_runtimes(folder)
    assert found is not None
    assert all(one.refused is None for one in found.runtimes.values())


def test_interrupted_build_ends_with_the_same_bytes(reusing: Path, class_build: Built, tmp_path: Path, finished: FinishedStages) -> None:
    folder = tmp_path / "bundle"
    plan = changed(class_build, folder, **REUSE)
    shutil.rmtree(folder / "local" / "stages")
    shutil.copytree(reusing / "local" / "stages", folder / "local" / "stages")
    for stage in ("cut-w8a8", "statistics"):
        shutil.rmtree(next(folder.glob(f"local/stages/{stage}-*")))
    run_build(plan, on_progress=finished)
    assert list(remade_stages(finished)) == ["cut-w8a8", "statistics"]
    assert portable(folder) == portable(reusing)


def test_added_schedule_reuses_at_other_steps_or_none(reusing: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reusing, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages")))
    add_schedule(folder, "some", ScheduleRequest(reuse=f"{CUT}:steps=2-3", mode="joint"))
    add_schedule(folder, "none", ScheduleRequest(reuse="none", mode="joint"))
    add_schedule(folder, "line", ScheduleRequest(reuse=f"{CUT}:steps=1-3:extrapolate", mode="joint"))
    bundle = Bundle.open(folder)
    zero, _, two, three = (step.timestep for step in bundle.schedule("line").steps)
    assert [step.extrapolation for step in bundle.schedule("line").steps] == [None, None, None, pytest.approx((two - three) / (zero - two))]
    with pytest.raises(UsageError, match="does not extrapolate features"):
        PtqdDenoiser.from_bundle(folder, schedule="line")
    assert [step.reuse for step in bundle.schedule("some").steps] == [None, None, CUT, CUT]
    assert bundle.schedule("none").cut is None
    assert f"statistics/onnxruntime/some/w8a8+{CUT}.json" in bundle.manifest.files
    for asked, problem in (
        ("skip_9:every=2", "has no such cut"),
        (f"{CUT}:every=1", "names no steps of the chain"),
        (f"{CUT}:steps=0-1", "names no steps of the chain"),
        (f"{CUT}:steps=4", "names no steps of the chain"),
        ("every=2", "not understood"),
    ):
        with pytest.raises(UsageError, match=problem):
            add_schedule(folder, "wrong", ScheduleRequest(reuse=asked))
    with pytest.raises(UsageError, match="A budget chooses the steps that reuse features itself"):
        add_schedule(folder, "wrong", ScheduleRequest(policy="budget", budget=0.5, reuse=f"{CUT}:every=2"))
    with pytest.raises(UsageError, match=r"--policy budget"):
        add_schedule(folder, "wrong", ScheduleRequest(reuse=f"{CUT}:auto"))
    with pytest.raises(UsageError, match="do not suffice"):
        add_schedule(folder, "wrong", ScheduleRequest(reuse=f"{CUT}:every=2", fit="moments"))


@pytest.fixture(scope="module")
def bought(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle whose budget of bit operations only steps that reuse features can keep. Tests must not modify it."""
    folder = tmp_path_factory.mktemp("bought") / "bundle"
    budget = {"policy": "budget", "budget": 0.045}
    with pytest.MonkeyPatch.context() as patch:
        for constant, value in {"CHECKED_SAMPLES": 4, "FRONTIER_POINTS": 4, "CHECKED_POINTS": 2, "MIXTURES": 2}.items():
            patch.setattr(fit_budget, constant, value)
        patch.setattr(fit_budget, "without_gain", lambda _: ("fp32+skip_1",))
        run_build(changed(class_build, folder, precisions=["w8a8"], reuse={"cuts": [CUT]}, steps=budget))
    return folder


def test_budget_of_a_plan_buys_steps_that_reuse(bought: Path) -> None:
    bundle = Bundle.open(bought)
    schedule, record = bundle.schedule(), bundle.manifest.precisions["w8a8"]
    costs = {"w8a8": 1 / record.bit_operations_saved_all, f"w8a8+{CUT}": 1 / record.cuts[CUT].bit_operations_saved_all}
    taken = [step.network for step in schedule.steps]
    assert np.mean([costs[name] for name in taken]) <= 0.045 < costs["w8a8"]
    assert taken[0] == "w8a8"
    frontier = json.loads((bought / "statistics/onnxruntime/frontier.json").read_text())
    assert frontier["cost_a_step"] == pytest.approx(costs)
    assert np.shape(frontier["reused_amplitudes"][f"w8a8+{CUT}"]) == (MOST_AGE, 4)
    (own,) = (chain for chain in frontier["chains"] if chain["kind"] == "budget")
    assert own["precisions"] == taken
    assert {"precisions", "reuse"} <= {chain["kind"] for chain in frontier["chains"]}
    assert own["measured"]["error"] > 0
    reusing = {tuple(chain["precisions"]): chain["measured"] for chain in frontier["chains"] if CUT in str(chain["precisions"])}
    assert frontier["prediction"]["reusing_chains"] == sum(one is not None for one in reusing.values()) > 1
    stored = json.loads((bought / f"statistics/onnxruntime/w8a8+{CUT}.json").read_text())
    assert [step["step"] for step in stored["steps"]] == [step.step for step in schedule.steps if step.reuse]


def test_schedule_for_a_psnr_is_as_cheap_as_the_psnr_allows(bought: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bought, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages")))
    added = add_schedule(folder, "rough", ScheduleRequest(psnr=5, mode="joint"))
    assert [step.reuse for step in added.schedule.steps] == [None, CUT, CUT, CUT]
    assert added.predicted is not None
    assert 5 <= added.predicted < 20
    assert f"predicted PSNR {added.predicted:.1f} dB" in str(added)
    with pytest.raises(UsageError, match=r"(?s)No chain is predicted to reach this PSNR.*200 dB.*expected: +at most"):
        add_schedule(folder, "wrong", ScheduleRequest(psnr=200))
    with pytest.raises(UsageError, match="for a cost or for a PSNR"):
        add_schedule(folder, "wrong", ScheduleRequest(policy="budget", psnr=30, budget=0.5))


def test_cut_that_the_network_lacks_is_refused_with_those_that_it_has(class_build: Built, tmp_path: Path) -> None:
    plan = changed(class_build, tmp_path / "bundle", **(REUSE | {"reuse": {"cuts": ["skip_9"]}}))
    with pytest.raises(UsageError, match=r"(?s)no such cut.*skip_9.*skip_0, skip_1, skip_2, skip_3"):
        run_build(plan)
