"""The committed probe is the one that its script makes."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from tools.probes.make_convolution_probe import OUTPUT, probe


def test_committed_probe_is_up_to_date() -> None:
    onnx.checker.check_model(probe(), full_check=True)
    committed, made = onnx.load(OUTPUT), probe()
    for model in (committed, made):
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))  # wherever its values lay
    assert committed == made
