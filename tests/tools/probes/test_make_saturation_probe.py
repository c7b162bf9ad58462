"""The committed probe is the one that its script makes."""

from __future__ import annotations

import onnx

from tools.probes.make_saturation_probe import OUTPUT, probe


def test_committed_probe_is_up_to_date() -> None:
    onnx.checker.check_model(probe(), full_check=True)
    assert onnx.load(OUTPUT) == probe()
