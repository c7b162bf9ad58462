"""A bundle of floats in blocks: built, measured and shown without a runtime that has them, and never run as something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from engines import cli as run_cli
from engines.bundle.bundle import Bundle
from ptqd_export import cli as export_cli
from ptqd_export.commands.bisect import BisectRequest, bisect_bundle
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.measuring.bundle_backend import bundle_measuring_backend
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import print_summary

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

PRECISIONS = ["nvfp4", "nvfp4a8", "mxfp8"]


@pytest.fixture(scope="module")
def folder(class_trt_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("blocks") / "bundle"
    target = class_trt_build.plan_file.plan.target.model_dump() | {"high_precision": "fp16"}
    plan_file = class_trt_build.resumed_in(output, target=target, precisions=PRECISIONS)
    run_build(plan_file)
    print_summary(plan_file, 1.0)
    return output


def _layers(folder: Path, precision: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "statistics" / "tensorrt" / f"{precision}.json").read_text())["layers"]
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_has_blocks_and_convolutions_8_bit_floats(folder: Path, precision: str) -> None:
    inner = [layer for layer in _layers(folder, precision) if layer["role"] == "inner"]
    form = "mxfp8" if precision == "mxfp8" else "nvfp4"
    assert {(layer["op"] == "Conv", layer["form"]) for layer in inner} == {(True, "e4m3"), (False, form)}
    assert {layer["weight"]["group"] for layer in inner} == {None, 32 if form == "mxfp8" else 16}
    assert all("8-bit floats (E4M3) without blocks: a Conv takes" in layer["reason"] for layer in inner if layer["op"] == "Conv")


def test_statistics_are_those_of_the_stand_in(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert check_on(bundle, bundle_measuring_backend(bundle)) < 0.02


def test_commands_show_it_and_say_which_layers_have_no_blocks(folder: Path) -> None:
    shown = CliRunner().invoke(export_cli.main, ["inspect", str(folder)])
    assert shown.exit_code == 0
    assert "without blocks: a Conv takes no blocks of input channels" in shown.stdout
    assert CliRunner().invoke(export_cli.main, ["report", str(folder), "--output", str(folder.parent / "report.html")]).exit_code == 0
    assert "nvfp4a8" in (folder.parent / "report.html").read_text()


def test_runtime_without_kernels_is_told_and_nothing_runs_in_its_place(folder: Path, tmp_path: Path) -> None:
    for precision in ("nvfp4", "mxfp8"):
        options = ["--num", "1", "--seed", "1", "--precision", precision, "--runtime", "onnxruntime", "--output", str(tmp_path / precision)]
        done = CliRunner().invoke(run_cli.main, ["sample", str(folder), *options])
        assert done.exit_code == 1
        assert "ONNX Runtime refuses the graph" in done.stderr
        assert "run it on the bundle's own target, which has kernels for its types" in done.stderr


def test_layers_of_its_engine_are_held_against_full_precision(folder: Path) -> None:
    from ptqd_export.commands.bisect import _as_written

    found = bisect_bundle(BisectRequest(folder, "nvfp4", against="fp32", min_snr_db=0.0), _as_written)
    assert found.first is None
    assert len(found.layers) > 20
