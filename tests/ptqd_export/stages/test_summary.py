"""What is printed after a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.terminal.fitting_table import FittingTable, result_console
from ptqd_export.commands.inspect_command import inspect_bundle, print_inspection
from ptqd_export.records.times_file import without_gain
from ptqd_export.stages import summary
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import COLUMNS
from tests.narrow_terminal import WIDTHS, check_whole, narrow
from tests.ptqd_export.stages.whole_builds import QUANTIZED

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def test_table_names_every_precision_and_what_to_do_next(class_build: Built, capsys: pytest.CaptureFixture[str]) -> None:
    summary.print_summary(class_build.plan_file, 83.2)
    out, err = capsys.readouterr()
    for precision in ("fp32", *QUANTIZED["class_build"]):
        assert f" {precision} " in out
    assert "built in 83 s; next: ptqd-run sample" in out
    assert err == ""
    assert "\x1b" not in out


@pytest.mark.parametrize("width", WIDTHS)
def test_table_is_whole_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    narrow(monkeypatch, width)
    table = FittingTable("a build", COLUMNS)
    cells = ("w8a8", "143.20 MB (0.25x)", "16.0x / 12.1x", "123.4 ms (1.00x)", "32.1 dB", "0.123", "34.5 dB", "-0.01 dB", "20")
    table.add_row(*cells)
    result_console().print(table)
    words = ("precision", "size", "bit ops saved", "time per step", "SNR", "R2", "corrected", "mode", "steps", *cells)
    check_whole(capsys.readouterr().out, width, words)


@pytest.mark.parametrize("saturates", [False, True])
def test_weights_of_7_bits_are_proposed_where_8_bit_products_saturate(
    class_build: Built, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    monkeypatch.setattr(summary, "saturates", lambda _config: saturates)
    assert ("w7a8" in summary._saturation(class_build.context)) == saturates


def test_nothing_is_proposed_where_another_runtime_runs_the_graphs(cross_trt_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "saturates", lambda _config: True)
    assert summary._saturation(cross_trt_build.context) == ""


def _layers(bundle: Path, precision: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((bundle / "statistics" / "onnxruntime" / f"{precision}.json").read_text())["layers"]
    return found


def test_branches_and_groups_of_weight_scales_are_told_with_the_layers_that_have_none(
    class_build: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a build with two groups of steps, whose graphs share the branches and the rest of the weights."""
    plan = class_build.plan_file.plan
    changed = {
        "quantization": plan.quantization.model_dump() | {"low_rank": 4, "step_groups": 2, "weight_group": 32},
        "precisions": ["w4a4", "w4a16"],
    }
    plan_file = class_build.resumed_in(tmp_path / "bundle", **changed)
    run_build(plan_file)
    layers = _layers(tmp_path / "bundle", "w4a4")
    branched = [layer for layer in layers if layer["low_rank"] == 4]
    unbranched = [layer for layer in layers if "no low-rank branch" in str(layer["reason"])]
    assert len(branched) >= 4
    assert {layer["op"] for layer in unbranched} == {"Conv"}
    summary.print_summary(plan_file, 1.0)
    out = " ".join(capsys.readouterr().out.split())
    told = f"w4a4: branches of rank 4 in {len(branched)} layers, no low-rank branch in {len(unbranched)}; `ptqd-export inspect` says why"
    assert told in out
    grouped = [layer for layer in _layers(tmp_path / "bundle", "w4a16") if layer["weight"]["group"] == 32]
    channels = [
        layer for layer in _layers(tmp_path / "bundle", "w4a16") if "one weight scale for each output channel" in str(layer["reason"])
    ]
    assert min(len(grouped), len(channels)) >= 4
    without = f"one weight scale for each output channel in {len(channels)}; `ptqd-export inspect` says why"
    assert f"w4a16: groups of 32 input channels in {len(grouped)} layers, {without}" in out
    print_inspection(inspect_bundle(tmp_path / "bundle"))
    assert capsys.readouterr().out.count("rank 4") == len(branched)
    assert "4 / 4 + rank 4" in (tmp_path / "bundle" / "report" / "index.html").read_text()


def test_cut_that_saves_less_than_a_twentieth_of_a_step_is_named() -> None:
    times = {"fp32": 20.0, "w8a8": 10.0, "fp32+skip_3": 19.1, "w8a8+skip_3": 9.4, "w8a8+skip_1": 3.0}
    assert without_gain(times) == ("fp32+skip_3",)
    assert summary._without_gain(times).startswith("fp32+skip_3: reuse saves too little here, 19.1 ms a step instead of 20.0 ms")
    assert summary._without_gain({"fp32": 20.0}) == ""
