"""Weights that are shifted when a graph is loaded."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from engines.backends.onnxruntime.onnxruntime_session import CONVOLUTION_PROBE, open_session, preferred_shift
from engines.backends.onnxruntime.weight_shift import SHIFTED, takes_shift


def _stored_weights(path: Path) -> tuple[int, int]:
    """A weight, and its zero point, of the one integer kernel in a graph that the runtime optimized."""
    model = onnx.load(path, load_external_data=False)
    (kernel,) = (node for node in model.graph.node if node.op_type == "QLinearConv")
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, zero = (numpy_helper.to_array(stored[name], str(path.parent)).flat[0] for name in (kernel.input[3], kernel.input[5]))
    return int(weight), int(zero)


@pytest.mark.parametrize(("shift", "weight", "zero"), [(0, 1, 0), (SHIFTED, 0, -1)])
def test_the_kernel_gets_shifted_integers_and_zero_points(tmp_path: Path, shift: int, weight: int, zero: int) -> None:
    open_session(CONVOLUTION_PROBE, {}, optimized=tmp_path / "optimized.onnx", shift=shift)
    assert _stored_weights(tmp_path / "optimized.onnx") == (weight, zero)


def test_a_preferred_shift_is_one_of_the_two() -> None:
    assert preferred_shift() in (0, SHIFTED)


def test_a_file_that_is_no_graph_takes_no_shift(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is no graph")
    assert not takes_shift(tmp_path / "text.onnx")
    assert not takes_shift(tmp_path / "nowhere.onnx")
