"""The table and the file of a known evaluation."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from engines.apps.evaluate.evaluation_report import print_chain, print_report, write_report
from engines.apps.evaluate.evaluation_result import EvaluationResult, Figure
from engines.apps.evaluate.metrics.confidence import BLOCKS, Estimate, Summary
from tests.narrow_terminal import WIDTHS, check_whole, narrow


def summary(mean: float, half_width: float) -> Summary:
    return Summary(mean, 0.25, (mean - half_width, mean + half_width), (mean - 0.25, mean + 0.25))


RESULT = EvaluationResult(
    schedule="default",
    full_precision="fp32",
    precision="auto",
    precision_steps={"w4a8": 15, "fp32": 5},
    correction="on",
    guidance=1.5,
    num=50_000,
    seeds=(1, 2),
    classes="all",
    reference_count=None,
    extractor="0" * 64,
    feature_dimension=2048,
    figures={
        "frechet_distance": Figure(summary(5.0, 1), summary(5.125, 1), summary(0.125, 0.0625), "ptqd-small-1"),
        "pooled_psnr": Figure(None, summary(31.5, 0.5), None),
        "median_psnr": Figure(None, Summary(math.inf, None, None, (math.inf, math.inf)), None),
        "other_psnr": Figure(None, Summary(math.inf, None, None, (math.inf, 31.0)), None),
    },
    unavailable={"recall": "the reference holds no features of individual images"},
    warnings=("mind the gap",),
    extractor_name="ptqd-small-1",
    reference_seed=3,
)


def test_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(RESULT)
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in _printed(capsys) if "│" in line}
    assert rows["frechet distance (ptqd-small-1)"] == ["5 +- 0.25", "5.125 +- 0.25", "+0.125 (+2.5%)", "+0.0625 to +0.1875"]
    assert rows["pooled psnr"] == ["-", "31.5 +- 0.25", "-", "+31 to +32"]
    assert rows["median psnr"] == ["-", "identical", "-", "-"]
    assert rows["other psnr"] == ["-", "identical in 1 of 2 seeds", "-", "-"]
    assert rows["recall"] == ["not available", "not available", "-", "-"]


def test_notes_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(RESULT)
    lines = _printed(capsys)
    assert lines[0].strip() == "50000 samples per seed, 2 seeds, guidance 1.5"
    assert "reference: full-precision samples of seed 3" in lines
    assert any(line.startswith("steps: 15 w4a8, 5 fp32;") for line in lines)
    assert lines[-2:] == ["recall is not available: the reference holds no features of individual images", "warning: mind the gap"]


def test_file_for_programs(tmp_path: Path) -> None:
    write_report(RESULT, tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written) == [field.name for field in dataclasses.fields(EvaluationResult)]
    assert written["figures"]["frechet_distance"]["difference"] == {
        "mean": 0.125,
        "deviation": 0.25,
        "interval": [0.0625, 0.1875],
        "values": [-0.125, 0.375],
    }
    assert (written["schema_version"], written["seeds"], written["figures"]["pooled_psnr"]["difference"]) == (2, [1, 2], None)
    assert written["figures"]["other_psnr"]["quantized"] == {"mean": None, "deviation": None, "interval": None, "values": [None, 31.0]}


def test_a_chain_whose_samples_are_identical_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_chain("w8a8", 1, {"median_psnr": Estimate(math.inf, np.full(BLOCKS, math.inf)), "recall": Estimate(0.5, np.ones(BLOCKS))}, {})
    assert capsys.readouterr().out == "w8a8, seed 1: median psnr identical, recall 0.5\n"


def _printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_table_is_whole_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    narrow(monkeypatch, width)
    print_report(RESULT)
    words = ("figure", "fp32", "auto, correction on" if width > 80 else "correction on", "difference", "95 % interval", "frechet distance")
    check_whole(capsys.readouterr().out, width, (*words, "5.125 +- 0.25", "+0.0625 to +0.1875"))
