"""What was measured after the build: read from files that nobody vouches for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.apps.evaluate.evaluation_result import labelled
from engines.bundle.bundle import Bundle
from engines.errors import BundleError, UsageError
from engines.host.machine import machine_name
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.findings import evaluation as finding_of

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

TIMES = {
    "processor": "a processor",
    "cores": 2,
    "provider": "CPU",
    "batch": 8,
    "guided": True,
    "milliseconds_a_step": {"fp32": 4.0, "w8a8": 2.0},
}

Change = Callable[[dict[str, Any]], object]


def test_times_of_every_machine_are_found(own_tiny: TinyBundle) -> None:
    for machine, cores in (("b", 4), ("a", 2), (machine_name(), 8)):
        folder = own_tiny.folder / "local" / machine
        folder.mkdir(parents=True)
        (folder / "times.json").write_text(json.dumps(TIMES | {"cores": cores}))
    found = Evidence.load(Bundle.open(own_tiny.folder)).times
    assert sorted(times.cores for times in found) == [2, 4, 8]
    assert found[0].machine == "a processor, 2 cores, batch 8"
    assert found[0].milliseconds_a_step == {"fp32": 4.0, "w8a8": 2.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "times.json is not JSON"),
        ("{}", "measured times are damaged"),
        (json.dumps(TIMES | {"milliseconds_a_step": {"fp32": 0.0}}), "measured times are damaged"),
        (json.dumps(TIMES | {"cores": "2"}), "measured times are damaged"),
    ],
)
def test_damaged_times_are_an_error(own_tiny: TinyBundle, content: str, message: str) -> None:
    folder = own_tiny.folder / "local" / "a"
    folder.mkdir(parents=True)
    (folder / "times.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        Evidence.load(Bundle.open(own_tiny.folder))


def test_results_are_read_as_they_were_written(tiny: TinyBundle, evaluation_file: Path, comparison_file: Path) -> None:
    evidence = Evidence.load(Bundle.open(tiny.folder), [evaluation_file], [comparison_file])
    (evaluation,), (comparison,) = evidence.evaluations, evidence.comparisons
    assert evaluation.figures["frechet_distance"].quantized.mean == 6.25
    assert (evaluation.seeds, evaluation.classes) == ((3,), "all")
    assert comparison.precisions["w4a8"].worst.snr_db == 30.25
    assert comparison.precisions["w4a8"].steps[1].snr_db is None


def test_psnr_of_the_first_version_is_called_what_it_is(tiny: TinyBundle, evaluation_file: Path) -> None:
    def first_version(result: dict[str, Any]) -> None:
        result.update(schema_version=1)
        result["figures"]["psnr"] = result["figures"].pop("pooled_psnr")

    _edit(evaluation_file, first_version)
    (found,) = Evidence.load(Bundle.open(tiny.folder), [evaluation_file]).evaluations
    (_, distance), (name, psnr) = ((labelled(name, None), figure) for name, figure in found.figures.items())
    assert distance.quantized.mean == 6.25
    assert (name, psnr.quantized.mean) == ("psnr as mean of dB (identical images: 150)", 31.5)


def test_infinite_figures_are_read_as_they_were_written(tiny: TinyBundle, evaluation_file: Path) -> None:
    identical = {"mean": None, "deviation": None, "interval": None, "values": [None]}
    _edit(evaluation_file, lambda result: result["figures"]["pooled_psnr"].update(quantized=identical))
    (found,) = Evidence.load(Bundle.open(tiny.folder), [evaluation_file]).evaluations
    summary = found.figures["pooled_psnr"].quantized
    assert (summary.mean, summary.values, summary.interval) == (math.inf, (math.inf,), None)
    (table,) = finding_of(found).tables
    assert [cell.text for cell in table.rows[-1]] == ["pooled psnr", "-", "identical", "-", "-", "-"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result.pop("figures"), "is not a valid result of `ptqd-run evaluate`(?s:.*)figures"),
        (lambda result: result.update(num="many"), "is not a valid result(?s:.*)num"),
        (lambda result: result.update(guidance=float("nan")), "contains NaN, infinity or a number out of range."),
        (lambda result: result.update(schema_version=3), "is not a valid result(?s:.*)schema_version"),
        (lambda result: result.update(seeds=[]), "is incomplete"),
        (lambda result: result.update(size=[64, 48]), "belongs to another size(?s:.*)64x48"),
        (lambda result: result.update(schedule="fifty"), "belongs to another bundle(?s:.*)schedule fifty"),
        (lambda result: result.update(precision_steps={"w3a8": 4}), "belongs to another bundle(?s:.*)w3a8"),
    ],
)
def test_an_evaluation_that_is_none_is_an_error(tiny: TinyBundle, evaluation_file: Path, change: Change, message: str) -> None:
    _edit(evaluation_file, change)
    with pytest.raises(UsageError, match=message):
        Evidence.load(Bundle.open(tiny.folder), evaluations=[evaluation_file])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda result: result["precisions"]["w4a8"]["steps"][0].pop("chosen"), "is not a valid result of `ptqd-run compare`(?s:.*)chosen"),
        (lambda result: result.update(precisions={}), "is incomplete"),
        (lambda result: result["precisions"]["w4a8"].update(worst_step=7), "is incomplete"),
        (lambda result: result["precisions"].update(w8a8=result["precisions"]["w4a8"] | {"steps": []}), "is incomplete"),
        (lambda result: result["precisions"].update({"<b>": result["precisions"]["w4a8"]}), "belongs to another bundle"),
        (lambda result: result.update(size=[64, 48]), "belongs to another size(?s:.*)64x48"),
    ],
)
def test_a_comparison_that_is_none_is_an_error(tiny: TinyBundle, comparison_file: Path, change: Change, message: str) -> None:
    _edit(comparison_file, change)
    with pytest.raises(UsageError, match=message):
        Evidence.load(Bundle.open(tiny.folder), comparisons=[comparison_file])


def test_evaluations_written_before_extractors_had_names_are_read(tiny: TinyBundle, evaluation_file: Path) -> None:
    def as_before(result: dict[str, Any]) -> None:
        for name in ("extractor_name", "reference_seed", "prompts"):
            del result[name]
        for figure in result["figures"].values():
            del figure["extractor"]

    _edit(evaluation_file, as_before)
    (found,) = Evidence.load(Bundle.open(tiny.folder), [evaluation_file]).evaluations
    assert (found.extractor_name, found.figures["frechet_distance"].extractor) == (None, None)


def test_one_for_the_other_is_an_error(tiny: TinyBundle, evaluation_file: Path, comparison_file: Path) -> None:
    with pytest.raises(UsageError, match="is not a valid result of `ptqd-run compare`"):
        Evidence.load(Bundle.open(tiny.folder), comparisons=[evaluation_file])
    with pytest.raises(UsageError, match="is not a valid result of `ptqd-run evaluate`"):
        Evidence.load(Bundle.open(tiny.folder), evaluations=[comparison_file])


def _edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
