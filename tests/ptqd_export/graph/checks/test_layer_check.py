"""Faults planted in one layer are refused by the layer's name, at a single state; right graphs agree to float precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calib.walk.activation_states import States
from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.errors import PtqdError
from ptqd_export.graph.checks import layer_check
from ptqd_export.graph.checks.layer_check import check_layers

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built, Feeds

BUILDS = ["class_build", "cross_build", "class_trt_build"]


def _feeds(built: Built, count: int) -> Feeds:
    states = States.load(built.stage("states") / "states.npz").first(count)
    conditioning = built.context.model.conditioning
    assert conditioning is not None
    return {"sample": states.samples, "timestep": states.timesteps, **conditioning.feeds(states.rows, guided=False)}


def _agreement(built: Built, precision: str, count: int = 1, graph: Path | None = None) -> float:
    return check_layers(built.context.model, graph or built.graph(precision), built.quantize(precision), _feeds(built, count))


def with_fault(source: Path, folder: Path, initializer: str, change: Callable[[Array], Any]) -> Path:
    """Save a copy of a graph with one initializer changed."""
    model = onnx.load(source)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == initializer)
    value = numpy_helper.to_array(tensor)
    changed = np.asarray(change(value), value.dtype)
    assert (changed != value).any()
    tensor.CopyFrom(numpy_helper.from_array(changed, initializer))
    onnx.save(model, folder / source.name)
    return folder / source.name


@pytest.mark.parametrize("name", BUILDS)
def test_every_layer_of_a_right_graph_agrees_to_float_precision(name: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(name)
    for precision in built.context.quantized_precisions:
        assert _agreement(built, precision.name, 4) > 100, precision.name


def _permuted(weight: Array) -> Array:
    """The weights of one output channel in another order."""
    changed = weight.copy()
    changed[3] = np.roll(changed[3], 1, axis=0)
    return changed


FAULTS: dict[str, tuple[str, Callable[[Array], Any], str]] = {
    "scale 5 % off": ("mid_block.resnets.0.conv1.weight.scale", lambda scale: 1.05 * scale, "mid_block.resnets.0.conv1"),
    "a channel's weights permuted": ("mid_block.resnets.0.conv1.weight.int", _permuted, "mid_block.resnets.0.conv1"),
    "a missing bias": ("down_blocks.0.resnets.0.conv2.bias.int", np.zeros_like, "down_blocks.0.resnets.0.conv2"),
    "a gain applied twice": ("mid_block.resnets.0.norm1.weight", lambda gain: 1.05 * gain, "mid_block.resnets.0.conv1"),
    "a layer in float": ("conv_out.bias", lambda bias: bias + 0.1, "conv_out"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_layer_is_refused_by_name(class_build: Built, tmp_path: Path, fault: str) -> None:
    initializer, change, name = FAULTS[fault]
    graph = with_fault(class_build.graph("w8a8"), tmp_path, initializer, change)
    with pytest.raises(PtqdError, match=rf"w8a8\.onnx does not compute what its oracle computes: .*{name}"):
        _agreement(class_build, "w8a8", graph=graph)


def test_a_wrong_zero_point_is_refused(class_build: Built, tmp_path: Path) -> None:
    model = onnx.load(class_build.graph("w8a8"))
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    (dequantize,) = (node for node in model.graph.node if quantize.output[0] in node.input)
    zero_point = next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == dequantize.input[2])
    model.graph.initializer.append(numpy_helper.from_array(zero_point + zero_point.dtype.type(1), "wrong"))
    dequantize.input[2] = "wrong"
    onnx.save(model, tmp_path / "w8a8.onnx")
    with pytest.raises(PtqdError, match="does not compute what its oracle computes"):
        _agreement(class_build, "w8a8", graph=tmp_path / "w8a8.onnx")


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
