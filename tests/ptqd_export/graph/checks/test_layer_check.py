"""Faults planted in one layer are refused by the layer's name, at a single state; right graphs agree to float precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calib.walk.activation_states import States
from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.errors import PtqdError
from ptqd_export.graph.checks import layer_check
from ptqd_export.graph.checks.layer_check import check_layers
from tests.ptqd_export.graph.checks.planted_faults import FAULTS, planted

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built, Feeds

BUILDS = ["class_build", "cross_build", "class_trt_build"]


def _feeds(built: Built, count: int) -> Feeds:
    states = States.load(built.stage("states") / "states.npz").first(count)
    conditioning = built.context.model.conditioning
    assert conditioning is not None
    return {"sample": states.samples, "timestep": states.timesteps, **conditioning.feeds(states.rows, guided=False)}


def _agreement(built: Built, precision: str, count: int = 1, graph: Path | None = None) -> float:
    return check_layers(built.context.model, graph or built.graph(precision), built.quantize(precision), _feeds(built, count))


@pytest.mark.parametrize("name", BUILDS)
def test_every_layer_of_a_right_graph_agrees_to_float_precision(name: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(name)
    for precision in built.context.quantized_precisions:
        assert _agreement(built, precision.name, 4) > 100, precision.name


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_layer_is_refused_by_name(class_build: Built, tmp_path: Path, fault: str) -> None:
    graph = planted(FAULTS[fault], class_build.graph("w8a8"), tmp_path)
    with pytest.raises(PtqdError, match=rf"w8a8\.onnx does not compute what its oracle computes: .*{FAULTS[fault].layer} differs"):
        _agreement(class_build, "w8a8", graph=graph)


def test_layers_are_held_a_group_at_a_time(class_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, runs, run = _agreement(class_build, "w8a8"), 0, run_outputs

    def counted(*given: Any, **options: Any) -> Any:
        nonlocal runs
        runs += 1
        return run(*given, **options)

    monkeypatch.setattr(layer_check, "run_outputs", counted)
    monkeypatch.setattr(layer_check, "HELD_BYTES", 20_000)
    assert _agreement(class_build, "w8a8") == pytest.approx(whole)
    assert runs > 3


def test_a_quantized_layer_that_is_never_compared_is_refused(class_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = "mid_block.resnets.0.conv1"
    names = layer_check._GraphOutputs.names.fget  # type: ignore[attr-defined]  # of a property
    monkeypatch.setattr(layer_check._GraphOutputs, "names", property(lambda self: [name for name in names(self) if name != left_out]))
    with pytest.raises(PtqdError, match=f"{left_out} differs"):
        _agreement(class_build, "w8a8")
