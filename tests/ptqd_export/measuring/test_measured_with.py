"""What measures, for every plan, with and without a device; the statistics are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.backends.base import Engine
from engines.bundle.bundle import Bundle
from engines.errors import MissingBackendError, UsageError
from ptqd_export.measuring import measured_with
from ptqd_export.measuring.measured_with import MeasuredWith
from ptqd_export.measuring.torch_backend import TorchBackend
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.plan.target import TargetSection
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.stages.build_check import check_build
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.fit.statistics import make_statistics
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import print_summary
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with TensorRT and a device."""
    monkeypatch.setattr(measured_with, "check_engines", lambda _: None)


def of(target: dict[str, Any], device: str = "cpu", *, on_a_cluster: bool = False) -> MeasuredWith:
    return MeasuredWith.of(TargetSection.model_validate(target), device, on_a_cluster=on_a_cluster)


@pytest.mark.parametrize(
    ("target", "device_name", "expected"),
    [
        ({"name": "onnxruntime"}, "cpu", ("engines", "onnxruntime")),
        ({"name": "onnxruntime"}, "cuda", ("engines", "onnxruntime")),
        ({"name": "onnxruntime", "provider": "CUDA"}, "cpu", ("engines", "onnxruntime-cuda")),
        ({"name": "onnxruntime", "measure": "cpu"}, "cpu", ("cpu", "onnxruntime-exact")),
        ({"name": "onnxruntime", "measure": "torch"}, "cpu", ("torch", "torch")),
        ({"name": "tensorrt"}, "cpu", ("cpu", "onnxruntime")),
        ({"name": "tensorrt"}, "cuda:1", ("torch", "torch")),
        ({"name": "tensorrt", "measure": "cpu"}, "cuda", ("cpu", "onnxruntime")),
    ],
)
def test_what_is_present_measures(target: dict[str, Any], device_name: str, expected: tuple[str, str]) -> None:
    found = of(target, device_name)
    assert (found.measure, found.runtime) == expected
    assert found.device == (device_name if found.measure == "torch" else "cpu")


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_engines_measure_where_their_device_is_present(name: str) -> None:
    assert of({"name": name}, "cuda") == MeasuredWith("engines", of({"name": name, "measure": "engines"}).runtime)
    assert of({"name": name}).runtime == name


def test_engines_that_are_asked_for_and_missing_end_the_build(class_trt_build: Built) -> None:
    plan = class_trt_build.plan_file.plan
    asked = plan.model_copy(update={"target": plan.target.model_copy(update={"measure": "engines"})})
    with pytest.raises(MissingBackendError):
        check_build(BuildContext(PlanFile(asked, class_trt_build.plan_file.folder)))


@pytest.mark.parametrize(("name", "measure"), [("onnxruntime", "torch"), ("onnxruntime", "cpu"), ("tensorrt", "torch")])
def test_workers_of_a_cluster_measure_on_the_target_or_on_onnx_runtime(name: str, measure: str) -> None:
    assert of({"name": name}, "cuda", on_a_cluster=True).runtime == "onnxruntime"
    with pytest.raises(UsageError, match=r"(?s)workers of a cluster run.*'engines'.*without --ray"):
        of({"name": name, "measure": measure}, on_a_cluster=True)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("measure", "runtime"), [(None, "tensorrt"), ("engines", "tensorrt"), ("cpu", "onnxruntime")])
def test_workers_of_a_cluster_take_engines_where_the_command_has_a_device_too(measure: str | None, runtime: str) -> None:
    assert of({"name": "tensorrt", "measure": measure}, on_a_cluster=True).runtime == runtime


def test_engines_of_workers_without_a_device_here_are_refused() -> None:
    with pytest.raises(MissingBackendError):
        of({"name": "tensorrt", "measure": "engines"}, on_a_cluster=True)


def statistics(built: Built, folder: Path, measure: str) -> dict[str, list[dict[str, Any]]]:
    """The records of the steps of every precision, by precision, measured on the graphs of the build."""
    content = built.plan_file.plan.model_dump(mode="json")
    content["target"]["measure"] = measure
    content["correction"]["mode"] = "joint"
    content["calibration"] |= {"samples": 32, "trajectory": "fp"}
    context = BuildContext(PlanFile(Plan.model_validate(content), built.plan_file.folder))
    precisions = [precision.name for precision in context.engine_precisions]
    graphs = {"fp32": built.stage("trace"), **{name: built.stage(f"quantize-{name}") for name in precisions}}
    folder.mkdir()
    make_statistics(context, graphs, None, fit_settings(context), folder, Recorder())
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in precisions}


def test_engines_torch_and_cpu_measure_the_same(class_build: Built, tmp_path: Path) -> None:
    """States are those of full precision, so that pairs see the same; what is left are values that fall into another bin."""
    found = {measure: statistics(class_build, tmp_path / measure, measure) for measure in ("engines", "torch", "cpu")}
    for measure in ("engines", "torch"):
        for name, steps in found["cpu"].items():
            for step, other in zip(steps, found[measure][name], strict=True):
                margin = 4 * step["k_standard_error"] + 1e-4
                assert abs(other["k"] - step["k"]) < margin, f"{measure} {name}: k {other['k']}, not {step['k']}"
                assert np.log(other["residual_variance"] / step["residual_variance"]) == pytest.approx(0, abs=0.1)


def test_a_build_measured_in_torch_says_so(class_build: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = {"name": "onnxruntime", "measure": "torch", "threads": 1}
    opened, open_torch = list[str](), TorchBackend.open

    def open_told(self: TorchBackend, graph: Path, rows: int) -> Engine:
        opened.append(graph.stem)
        return open_torch(self, graph, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchBackend, "open", open_told)
        plan_file = class_build.resumed_in(tmp_path / "bundle", precisions=["w8a8"], target=target, correction={"mode": "joint"})
        run_build(plan_file)
        assert {"fp32", "w8a8"} == set(opened)
        bundle = Bundle.open(tmp_path / "bundle")
        assert bundle.manifest.measured_on == "torch"
        assert json.loads(bundle.path("plan.json").read_text())["target"]["measure"] == "torch"
        opened.clear()
        add_schedule(bundle.folder, "three", ScheduleRequest(steps=3))
        assert {"fp32", "w8a8"} == set(opened)
    print_summary(plan_file, 1.0)
    assert "statistics: measured on PyTorch" in capsys.readouterr().out
    assert b"statistics measured on PyTorch" in bundle.path("report/index.html").read_bytes()
