"""The ablation on the digits: its figures are those of the chains that the bundle then holds, and an interrupted run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.reference import Reference
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import rows_of
from engines.networks.chain_choice import ChainChoice
from tools.ablation.__main__ import Study, mixtures, run_row
from tools.ablation.ablation_rows import SETTINGS, Row, full_precision_row, uniform_rows
from tools.digits import data

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

NUM = 50
SEED = 5
EXTRACTOR = Path(data.__file__).with_name("classifier.onnx")


def chosen_rows() -> Iterator[Row]:
    """Full precision, one walk of few samples, and one refit of it."""
    yield full_precision_row(SETTINGS["eta0"])
    walked, *refits = uniform_rows("w2a8", SETTINGS["eta0"])
    yield replace(walked, request=replace(walked.request, samples=8))
    yield next(row for row in refits if row.label == "none")


@pytest.fixture(scope="module")
def study(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("ablation")
    shutil.copytree(digits.folder, folder / "bundle", ignore=shutil.ignore_patterns("stages"))
    (folder / "results").mkdir()
    np.savez(folder / "real.npz", samples=data.digits()[0].numpy())
    extractor = Extractor(EXTRACTOR)
    reference = Reference.load(folder / "real.npz", extractor, (1, data.SIZE, data.SIZE))
    study = Study(folder / "bundle", folder / "results", extractor, reference, NUM, [SEED])
    for row in chosen_rows():
        run_row(study, row)
    return study


def figure(study: Study, row: Row, name: str) -> float:
    (estimate,) = json.loads((study.output / f"{row.name}.json").read_text())["figures"][name]
    return float(estimate["value"])


def test_figures_are_those_of_the_bundles_own_chains(study: Study) -> None:
    fp, walked, none = chosen_rows()
    bundle = Bundle.open(study.bundle)
    noise, numbers = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(NUM)
    rows = rows_of(numbers, noise, data.CLASSES, None)
    samples = {row.name: ChainChoice(row.name).open(bundle, NUM).sample(noise, numbers, rows) for row in (fp, walked, none)}
    for row in (walked, none):
        error = np.square(samples[row.name].clip(-1, 1) - samples[fp.name].clip(-1, 1)).mean(axis=(1, 2, 3))
        assert figure(study, row, "psnr_as_mean_of_db") == pytest.approx(float((10 * np.log10(4 / error)).mean()), abs=0.05)
        assert figure(study, row, "pooled_psnr") == pytest.approx(10 * np.log10(4 / error.mean()), abs=0.05)
    assert figure(study, walked, "pooled_psnr") != figure(study, none, "pooled_psnr")


def test_finished_rows_are_left_alone(study: Study) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.output.iterdir()}
    assert len(before) == 4  # three rows, and full precision's samples
    for row in chosen_rows():
        run_row(study, row)
    assert {path: path.stat().st_mtime_ns for path in study.output.iterdir()} == before


def test_an_interrupted_row_takes_the_schedule_that_it_had_added(study: Study) -> None:
    *_, none = chosen_rows()
    result, schedule = study.output / f"{none.name}.json", study.bundle / "schedules" / f"{none.name}.json"
    figures, added = json.loads(result.read_text())["figures"], schedule.stat().st_mtime_ns
    result.unlink()
    run_row(study, none)
    assert json.loads(result.read_text())["figures"] == figures
    assert schedule.stat().st_mtime_ns == added


def test_a_bundle_without_a_budget_has_no_mixtures(digits: Digits) -> None:
    assert mixtures(Bundle.open(digits.folder)) == {}


def test_the_budget_is_what_the_papers_choice_costs(tmp_path: Path) -> None:
    def chain(kind: str, cost: float, error: float) -> dict[str, object]:
        return {"kind": kind, "cost": cost, "predicted_error": error, "precisions": [kind, str(cost)]}

    chains = [chain("snr", 0.05, 9.0), chain("uniform", 0.04, 1.0), chain("frontier", 0.03, 5.0), chain("frontier", 0.05, 3.0)]
    chains += [chain("frontier", 0.06, 2.0), chain("budget", 0.07, 1.0)]
    (tmp_path / "frontier.json").write_text(json.dumps({"chains": chains}))
    manifest = SimpleNamespace(placement="onnxruntime", files={"statistics/onnxruntime/frontier.json": None})
    bundle = SimpleNamespace(manifest=manifest, path=lambda _: tmp_path / "frontier.json")
    assert mixtures(cast(Bundle, bundle)) == {"snr": ("snr", "0.05"), "budget": ("frontier", "0.05")}
