"""The stages of the policy `budget` on a finished build of a tiny random model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from engines.errors import UsageError
from engines.host.machine import machine_name
from ptqd_export.plan.published_times import PublishedTime
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.fit import budget as module
from ptqd_export.stages.fit.budget import Chosen, choose_precisions, write_time_frontier
from ptqd_export.stages.stage_cache import StageCache
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

STEPS = 4
CANDIDATES = ("w3a8", "w4a4", "w4a8", "w8a8")
FAST = {"PROBED_SAMPLES": 2, "CHECKED_SAMPLES": 4, "FRONTIER_POINTS": 5, "CHECKED_POINTS": 2, "MIXTURES": 2}


@dataclass(frozen=True)
class Run:
    """One choice, and what is known of it from elsewhere."""

    context: BuildContext
    chosen: Chosen
    costs: dict[str, float]
    reporter: Recorder

    @property
    def frontier(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.chosen.folder / "frontier.json").read_text())
        return content

    def cost(self, precisions: tuple[str, ...]) -> float:
        return float(np.mean([self.costs[name] for name in precisions]))


def _run(built: Built, folder: Path, budget: float, cost: Literal["bit_operations", "time"] = "bit_operations") -> Run:
    plan_file = built.resumed_in(folder, steps={"policy": "budget", "budget": budget, "cost": cost})
    context, reporter = BuildContext(plan_file), Recorder()
    graphs = {"fp32": built.stage("trace")} | {name: built.stage(f"quantize-{name}") for name in CANDIDATES}
    chosen = choose_precisions(context, StageCache(folder / "stages", reporter), graphs, built.stage("statistics"))
    records = built.json("manifest.json")["precisions"]
    return Run(context, chosen, {name: 1 / records[name]["bit_operations_saved_all"] for name in CANDIDATES}, reporter)


def _middle(built: Built) -> float:
    records = built.json("manifest.json")["precisions"]
    return float(np.mean([1 / records[name]["bit_operations_saved_all"] for name in CANDIDATES]))


@pytest.fixture(scope="module", autouse=True)
def fast() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calib.walk.fit.PROBED_SAMPLES", FAST["PROBED_SAMPLES"])
        for name, value in FAST.items():
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="module")
def run(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return _run(class_build, tmp_path_factory.mktemp("budget"), _middle(class_build))


def test_the_chain_keeps_the_budget_and_no_listed_chain_as_cheap_has_a_smaller_bound(class_build: Built, run: Run) -> None:
    assert len(run.chosen.networks) == STEPS
    assert run.cost(run.chosen.networks) <= _middle(class_build)
    (own,) = (chain for chain in run.frontier["chains"] if chain["kind"] == "budget")
    assert tuple(own["precisions"]) == run.chosen.networks
    assert own["cost"] == pytest.approx(run.cost(run.chosen.networks))
    cheaper = [chain["bound"] for chain in run.frontier["chains"] if chain["cost"] <= own["cost"]]
    assert own["bound"] == min(cheaper)
    assert len(cheaper) > 3


def test_the_frontier_lists_the_chains_to_compare_with(class_build: Built, run: Run) -> None:
    chains = run.frontier["chains"]
    uniform = [tuple(chain["precisions"]) for chain in chains if chain["kind"] == "uniform"]
    assert set(uniform) == {(name,) * STEPS for name in CANDIDATES}
    (snr,) = (tuple(chain["precisions"]) for chain in chains if chain["kind"] == "snr")
    assert snr == tuple(step["precision"] for step in class_build.json("schedules/default.json")["steps"])
    on_it = [chain for chain in chains if chain["kind"] == "frontier"]
    assert on_it[0]["cost"] == pytest.approx(min(run.costs.values()))
    assert {chain["kind"] for chain in chains} == {"uniform", "snr", "budget", "frontier", "mixture"}


def test_predictions_follow_from_the_probes_and_real_chains_stand_beside_them(run: Run) -> None:
    probes = run.chosen.probed.found
    assert probes.products.shape == (FAST["PROBED_SAMPLES"], STEPS, len(CANDIDATES), STEPS, len(CANDIDATES))
    for chain in run.frontier["chains"]:
        assert chain["predicted_error"] == pytest.approx(probes.predict(chain["precisions"]))
        assert chain["measured"] is not None or chain["kind"] == "frontier"
    measured = {tuple(chain["precisions"]) for chain in run.frontier["chains"] if chain["measured"]}
    assert run.frontier["prediction"]["chains"] == len(measured) > len(CANDIDATES)
    assert run.frontier["prediction"]["samples"] == FAST["CHECKED_SAMPLES"]
    assert run.frontier["prediction"]["pearson"] > 0.8


def test_the_frontier_is_the_same_bytes_again(class_build: Built, run: Run, tmp_path: Path) -> None:
    again = _run(class_build, tmp_path, _middle(class_build))
    assert again.chosen.networks == run.chosen.networks
    assert (again.chosen.folder / "frontier.json").read_bytes() == (run.chosen.folder / "frontier.json").read_bytes()


def test_another_budget_needs_no_other_probes(class_build: Built, run: Run) -> None:
    assert run.reporter.finished == {"times": False, "probes": False, "choice": False}
    folder = run.chosen.folder.parents[1]
    shutil.rmtree(folder / "local")
    again = _run(class_build, folder, min(run.costs.values()))
    assert again.reporter.finished == {"times": True, "probes": True, "choice": False}
    assert set(again.chosen.networks) == {min(run.costs, key=run.costs.__getitem__)}


def test_a_budget_below_the_cheapest_precision_is_told_before_anything_is_probed(
    class_build: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(module, "make_probes")
    monkeypatch.setattr(module, "time_engines", lambda *_: {})
    with pytest.raises(UsageError, match="Every chain costs more than the budget"):
        _run(class_build, tmp_path, 1e-4)


def test_time_is_spent_where_time_is_counted(class_build: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Milliseconds that make the most exact precision the cheapest."""
    times = {"fp32": 10.0, "w8a8": 1.0, "w4a8": 2.0, "w4a4": 2.0, "w3a8": 2.0}
    monkeypatch.setattr(module, "time_engines", lambda *_: times)
    run = _run(class_build, tmp_path, 0.1, cost="time")
    assert run.chosen.networks == ("w8a8",) * STEPS
    write_time_frontier(run.context, tmp_path, run.chosen, {}, times)
    record = json.loads((tmp_path / "local" / machine_name() / "frontier.json").read_text())
    assert record["cost"] == "time"
    assert record["cost_a_step"] == {"w3a8": 0.2, "w4a4": 0.2, "w4a8": 0.2, "w8a8": 0.1}
    uniform = {chain["precisions"][0]: chain["measured"] for chain in record["chains"] if chain["kind"] == "uniform"}
    assert all(uniform.values())


def test_published_times_are_spent_and_named_where_engines_do_not_run(
    class_build: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = {
        name: PublishedTime(share, f"a paper on {name}") for name, share in {"w8a8": 0.1, "w4a8": 0.2, "w4a4": 0.2, "w3a8": 0.2}.items()
    }
    monkeypatch.setattr(module, "PUBLISHED", published)
    monkeypatch.setattr(BuildContext, "is_timed", False)
    run = _run(class_build, tmp_path, 0.1, cost="time")
    assert run.chosen.networks == ("w8a8",) * STEPS
    record = json.loads((run.chosen.folder / "frontier.json").read_text())
    assert record["cost"] == "published_time"
    assert record["cost_a_step"] == {"w3a8": 0.2, "w4a4": 0.2, "w4a8": 0.2, "w8a8": 0.1}
    assert record["published"] == {name: f"a paper on {name}" for name in record["cost_a_step"]}
