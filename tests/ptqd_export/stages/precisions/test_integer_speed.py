"""Layers that are slower in integers are found by time, and stay in float."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
import pytest

from calib.quantizers.rules.precision import Precision
from ptqd_export.stages.precisions import integer_speed
from ptqd_export.stages.precisions.integer_speed import load_slower, make_integer_speed
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def integer_layers(graph: Path) -> set[str]:
    """Names of layers whose input and weight both come from DequantizeLinear."""
    found = set()
    for node in ir.load(graph).graph:
        if node.op_type in ("Conv", "MatMul"):
            x, weight = (value.producer() if value is not None else None for value in node.inputs[:2])
            if x is not None and weight is not None and x.op_type == weight.op_type == "DequantizeLinear":
                _, scale, _ = weight.inputs
                assert scale is not None
                found.add(str(scale.name).removesuffix(".weight.scale"))
    return found


def slow(built: Built) -> set[str]:
    """One kind of layer: convolutions of one shape on one level."""
    layers = {layer.name: (layer.shape, layer.macs) for layer in built.network.layers}
    return {name for name, kind in layers.items() if kind == layers["mid_block.resnets.0.conv1"]}


@pytest.fixture
def measured(class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stage on a machine where a step takes 10 s, 0.1 s more for every slow layer in integers, 0.1 s less for every other."""

    def one_step(_: object, graph: Path) -> Callable[[], float]:
        names = integer_layers(graph)
        return lambda: 10.0 + 0.1 * len(names & slow(class_build)) - 0.1 * len(names - slow(class_build))

    def medians(runs: Mapping[str, Callable[[], float]], *_: object, **__: object) -> dict[str, float]:
        return {name: run() for name, run in runs.items()}

    monkeypatch.setattr(integer_speed, "one_step", one_step)
    monkeypatch.setattr(integer_speed, "interleaved_medians", medians)
    (folder := tmp_path / "measured").mkdir()
    make_integer_speed(class_build.context, class_build.stage("trace"), class_build.stage("observe"), folder, Recorder())
    return folder


def test_kinds_that_make_a_step_slower_are_found(class_build: Built, measured: Path) -> None:
    found = load_slower(measured)
    assert len(found) > 3
    assert found.keys() == slow(class_build)
    assert all(0.5 < ratio < 0.98 for ratio in found.values())


def test_they_keep_integer_weights_and_compute_in_float(class_build: Built, measured: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "quantized").mkdir()
    trace, states, seen = (class_build.stage(name) for name in ("trace", "states", "observe"))
    slower = load_slower(measured)
    sources = Sources(trace, states, seen, slower)
    make_quantized_graph(class_build.context, Precision.parse("w4a8"), sources, None, folder, Recorder())
    record = {layer["name"]: layer for layer in json.loads((folder / "precision.json").read_text())["layers"]}
    for name, ratio in slower.items():
        assert (record[name]["weight_bits"], record[name]["activation_bits"]) == (4, None)
        assert record[name]["reason"] == f"integers are slower here: {ratio:.2f}x"
    assert integer_layers(folder / "w4a8.onnx") == integer_layers(class_build.graph("w4a8")) - slower.keys()
