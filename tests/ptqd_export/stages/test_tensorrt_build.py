"""Bundles for TensorRT: what differs from those for ONNX Runtime, which runs their graphs until there are engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from engines.backends.choice import engine_settings
from engines.backends.tensorrt.building.engine_cache import EngineCache
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import ProfileRecord, TargetRecord
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.errors import PtqdError
from engines.host.machine import machine_name
from engines.networks.engine_bank import EngineBank
from ptqd_export.graph.checks import graph_checks
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph
from ptqd_export.graph.checks.verify import verify_float
from ptqd_export.stages.fit import budget
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import print_summary

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

PRECISIONS = {"class_trt_build": ("w8a8", "w4a8", "w4a4"), "cross_trt_build": ("fp16", "fp8", "w8a8", "w4a4", "w4a16")}


@pytest.fixture(params=list(PRECISIONS))
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def built(name: str, request: pytest.FixtureRequest) -> Built:
    found: Built = request.getfixturevalue(name)
    return found


def _verification(built: Built, precision: str) -> dict[str, float]:
    stage = f"{'convert' if precision == 'fp16' else 'quantize'}-{precision}"
    found: dict[str, float] = json.loads((built.stage(stage) / "precision.json").read_text())["verification"]
    return found


def test_files_are_those_of_the_placement(name: str, built: Built) -> None:
    bundle = Bundle.open(built.folder)
    graphs = {f"graphs/tensorrt/{precision}.onnx" for precision in ("fp32", *PRECISIONS[name])}
    statistics = {f"statistics/tensorrt/{precision}.json" for precision in PRECISIONS[name]}
    assert {file for file in bundle.manifest.files if file.startswith(("graphs/", "statistics/"))} == graphs | statistics
    for graph in graphs:
        onnx.checker.check_model(str(bundle.path(graph)), full_check=True)


def test_manifest_says_what_engines_are_built_with(class_trt_build: Built, cross_trt_build: Built) -> None:
    """Guidance makes two rows of a sample; the fewest rows are those of a chain without it."""
    manifest = Bundle.open(class_trt_build.folder).manifest
    assert manifest.target == TargetRecord(
        name="tensorrt-rtx", high_precision="fp32", profile=ProfileRecord(min=1, opt=4, max=6), workspace_gib=1.0
    )
    assert (manifest.placement, manifest.measured_on) == ("tensorrt", "onnxruntime")
    assert Bundle.open(cross_trt_build.folder).manifest.target == TargetRecord(
        name="tensorrt", high_precision="fp16", profile=ProfileRecord(min=1, opt=16, max=128), workspace_gib=None
    )


def test_every_step_corrects_every_precision(name: str, built: Built) -> None:
    for step in Bundle.open(built.folder).schedule().steps:
        assert set(step.corrections) == {"fp32", *PRECISIONS[name]}


def test_half_precision_network_is_close_to_full_precision(cross_trt_build: Built) -> None:
    assert 50 < _verification(cross_trt_build, "fp16")["noise"] < 90
    record = Bundle.open(cross_trt_build.folder).manifest.precisions["fp16"]
    assert (record.weight_bits, record.activation_bits, record.bit_operations_saved_all) == (16, 16, 4.0)


@pytest.mark.parametrize("precision", ["fp8", "w8a8", "w4a4", "w4a16"])
def test_float16_adds_little_to_the_noise_of_quantization(cross_trt_build: Built, precision: str) -> None:
    found = _verification(cross_trt_build, precision)
    assert found["noise"] == pytest.approx(found["exact_noise"], abs=0.5)
    assert found["exact_match"] > found["noise"]
    float32 = cross_trt_build.stage(f"quantize-{precision}") / f"{precision}-fp32.onnx"
    assert cross_trt_build.graph(precision).stat().st_size < float32.stat().st_size


def test_symmetric_scales_are_in_the_record_of_every_layer(built: Built) -> None:
    for layer in built.json("statistics/tensorrt/w8a8.json")["layers"]:
        assert layer["output"] is None
        assert layer["input"] is None or layer["input"]["zero_point"] == 0


def test_no_time_is_told_that_the_target_did_not_take(name: str, built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    assert not (built.folder / "local" / machine_name() / "times.json").exists()
    print_summary(built.plan_file, 1.0)
    out = " ".join(capsys.readouterr().out.split())
    assert " ms " not in out
    assert f"not measured: ONNX Runtime ran the graphs in place of {built.plan_file.plan.target.name}" in out
    assert "next: ptqd-export engines" in out
    assert all(f" {precision} " in out for precision in ("fp32", *PRECISIONS[name]))


def test_budget_is_spent_in_bit_operations_without_times(class_trt_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for constant, value in {"PROBED_SAMPLES": 2, "CHECKED_SAMPLES": 4, "FRONTIER_POINTS": 3, "CHECKED_POINTS": 2, "MIXTURES": 2}.items():
        monkeypatch.setattr(budget, constant, value)
    monkeypatch.delattr(budget, "time_engines")
    plan_file = class_trt_build.resumed_in(tmp_path / "bundle", steps={"policy": "budget", "budget": 0.5})
    run_build(plan_file)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.schedule().policy == "budget"
    assert json.loads(bundle.path("statistics/tensorrt/frontier.json").read_text())["cost"] == "bit_operations"
    assert not list((tmp_path / "bundle" / "local" / machine_name()).glob("*.json"))


def test_real_builder_takes_both_graphs_of_a_cut(class_trt_build: Built, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    plan = class_trt_build.resumed_in(
        tmp_path / "bundle", precisions=["w8a8"], reuse={"cuts": ["skip_1"]}, steps={"policy": "snr", "reuse": {"every": 2}}
    )
    run_build(plan)
    bundle = Bundle.open(tmp_path / "bundle")
    assert [step.reuse for step in bundle.schedule().steps] == [None, "skip_1"]
    settings, record = engine_settings(bundle, "tensorrt-rtx"), bundle.manifest.precisions["w8a8"].cuts["skip_1"]
    sizes = []
    for graph in map(bundle.path, (record.full, record.reuse)):
        check_tensorrt_graph(graph)
        sizes.append(EngineCache(tmp_path / "engines").get(settings.spec(graph)).path.stat().st_size)
    assert sizes[0] > sizes[1] > 10_000


def test_times_of_an_earlier_target_are_removed(class_trt_build: Built, tmp_path: Path) -> None:
    times = tmp_path / "bundle" / "local" / machine_name() / "times.json"
    plan_file = class_trt_build.resumed_in(tmp_path / "bundle")
    times.parent.mkdir()
    times.write_text("{}")
    run_build(plan_file)
    assert not times.exists()


def test_samples_come_out_of_the_bundle_without_tensorrt(built: Built) -> None:
    bundle = Bundle.open(built.folder)
    bank = EngineBank(bundle, bundle.manifest.guidance, batch=3, threads=2)
    samples = np.arange(3, dtype=np.int64)
    rows = np.array([0, 1, 2], dtype=np.int64)
    found: dict[str, Any] = {}
    for precision in ("fp32", "w8a8"):
        noise = NoiseSource(5, bundle.manifest.model.sample_shape)
        found[precision] = Chain(bundle.schedule(), bank, precision, corrected=True).sample(noise, samples, rows)
        assert np.isfinite(found[precision]).all()
    assert 0 < np.abs(found["w8a8"] - found["fp32"]).mean() < 0.5 * found["fp32"].std()


def test_graph_that_tensorrt_refuses_does_not_leave_the_build(
    class_trt_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PtqdError("refused")

    monkeypatch.setitem(graph_checks.CHECKS, "tensorrt", refuse)
    plan_file = class_trt_build.resumed_in(tmp_path / "bundle", precisions=["w8a8", "w2a8"])
    with pytest.raises(PtqdError, match="refused"):
        run_build(plan_file)
    assert not (tmp_path / "bundle" / "manifest.json").exists()


def test_network_that_overflows_float16_is_refused(cross_trt_build: Built, tmp_path: Path) -> None:
    from calib.walk.activation_states import States

    model = onnx.load(cross_trt_build.graph("fp16"))
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "conv_out.bias.half")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, 0.5, np.float16), bias.name))
    onnx.save(model, tmp_path / "fp16.onnx")
    states = States.load(cross_trt_build.stage("states") / "states.npz")
    with pytest.raises(PtqdError, match=r"does not fit the float type of fp16\.onnx"):
        verify_float(cross_trt_build.context.model, tmp_path / "fp16.onnx", states.first(8))
