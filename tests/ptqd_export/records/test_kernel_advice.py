"""When 7-bit weights are recommended."""

from __future__ import annotations

import pytest

from ptqd_export.records.kernel_advice import kernel_advice


@pytest.mark.parametrize(
    ("target", "provider", "precisions", "sums_in_16_bits", "advised"),
    [
        ("onnxruntime", "CPU", ("fp32", "w8a8"), True, True),
        ("onnxruntime", "CPU", ("fp32", "w8a8"), False, False),
        ("onnxruntime", "CPU", ("fp32", "w8a8", "w7a8"), True, False),
        ("onnxruntime", "CPU", ("fp32", "w4a8"), True, False),
        ("onnxruntime", "CUDA", ("fp32", "w8a8"), True, False),
        ("tensorrt", "CPU", ("fp32", "w8a8"), True, False),
    ],
)
def test_seven_bits_are_recommended_where_eight_are_slow(
    target: str, provider: str, precisions: tuple[str, ...], sums_in_16_bits: bool, advised: bool
) -> None:
    found = kernel_advice(target, provider, precisions, sums_in_16_bits=sums_in_16_bits)
    assert (found is not None and "w7a8 uses fast ones" in found) == advised
