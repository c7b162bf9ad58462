"""A bundle whose float part is bfloat16: built and measured without a runtime that has it, and never run as something else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import build_engine
from engines.bundle.bundle import Bundle
from engines.cli import main
from ptqd_export.commands.bisect import BisectRequest, bisect_bundle
from ptqd_export.commands.built_engines_check import check_on
from ptqd_export.graph.stand_in_backend import runnable
from ptqd_export.measuring.bundle_backend import bundle_measuring_backend
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built, Feeds


@pytest.fixture(scope="module")
def bundle(class_trt_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bf16") / "bundle"
    target = class_trt_build.plan_file.plan.target.model_dump() | {"high_precision": "bf16"}
    run_build(class_trt_build.resumed_in(folder, target=target, precisions=["w8a8"]))
    return Bundle.open(folder)


def test_graph_computes_in_bfloat16_and_full_precision_in_float32(bundle: Bundle) -> None:
    assert bundle.manifest.target.high_precision == "bf16"
    kinds = {}
    for precision in ("w8a8", "fp32"):
        model = onnx.load(bundle.verified_graph(precision))
        onnx.checker.check_model(model, full_check=True)
        kinds[precision] = {tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.BFLOAT16 in kinds["w8a8"]
    assert not {TensorProto.FLOAT16, TensorProto.BFLOAT16} & kinds["fp32"]


def test_statistics_are_those_of_the_stand_in(bundle: Bundle) -> None:
    assert check_on(bundle, bundle_measuring_backend(bundle)) < 0.02


def test_builder_takes_it(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    build_engine(BuildSpec(bundle.verified_graph("w8a8"), "tensorrt-rtx", BatchProfile(1, 2, 4)), tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size > 10_000


def test_runtime_without_kernels_is_told_and_nothing_runs_in_its_place(bundle: Bundle, tmp_path: Path) -> None:
    options = ["--num", "1", "--seed", "1", "--precision", "w8a8", "--runtime", "onnxruntime", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["sample", str(bundle.folder), *options])
    assert done.exit_code == 1
    assert "ONNX Runtime refuses the graph" in done.stderr
    assert "run it on the bundle's own target, which has kernels for its types" in done.stderr


def test_layers_of_its_engine_are_held_against_the_stand_in(bundle: Bundle, tmp_path: Path) -> None:
    def run(graph: Path, feeds: Feeds) -> dict[str, Array]:
        """In an engine's place; what the graph shows is float32, whatever it computes in."""
        shown = onnx.load(graph).graph.output
        assert {output.type.tensor_type.elem_type for output in shown} == {TensorProto.FLOAT}
        return run_outputs(runnable(graph, tmp_path), feeds, "exact")

    found = bisect_bundle(BisectRequest(bundle.folder, "w8a8"), run)
    assert (found.first, len(found.layers) > 20) == (None, True)
    assert all(layer.snr_db is None for layer in found.layers)
    against = bisect_bundle(BisectRequest(bundle.folder, "w8a8", against="fp32", min_snr_db=0.0), run)
    assert against.first is None
