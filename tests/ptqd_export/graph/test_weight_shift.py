"""A network whose weights were shifted when it was loaded is the same network in other kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.backends.onnxruntime import onnxruntime_session
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.weight_shift import SHIFTED, takes_shift
from tests.ptqd_export.conftest import Built


def _feeds(engine: OnnxRuntimeEngine) -> dict[str, NDArray[Any]]:
    draw = np.random.default_rng(0)
    return {spec.name: draw.standard_normal((2, *spec.shape)).astype(spec.dtype) for spec in engine.inputs}


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_a_shifted_network_gives_the_same_to_the_last_bit(class_build: Built, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    graph = class_build.graph(precision)
    assert takes_shift(graph)
    outs = []
    for shift in (0, SHIFTED):
        monkeypatch.setattr(onnxruntime_session, "preferred_shift", lambda shift=shift: shift)
        engine = OnnxRuntimeEngine(graph, threads=1)
        outs.append(engine.run(_feeds(engine)))
    np.testing.assert_array_equal(outs[0], outs[1])


def test_full_precision_has_nothing_to_shift(class_build: Built) -> None:
    assert not takes_shift(class_build.graph("fp32"))
