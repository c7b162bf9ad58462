"""Advice on slow kernels of a processor, for the terminal and the report alike."""

from __future__ import annotations

from collections.abc import Collection


def kernel_advice(target: str, provider: str, precisions: Collection[str], *, sums_in_16_bits: bool) -> str | None:
    """Recommend 7-bit weights where they would be faster, in one sentence without a capital and a full stop; otherwise return None.

    Args:
        target: runtime of the bundle's engines.
        provider: ONNX Runtime's provider.
        precisions: names of the precisions.
        sums_in_16_bits: whether the processor sums 8-bit products in 16 bits.
    """
    concerned = target == "onnxruntime" and provider == "CPU" and "w8a8" in precisions and "w7a8" not in precisions
    if not (concerned and sums_in_16_bits):
        return None
    return "this processor sums 8-bit products in 16 bits, so w8a8 uses slow kernels; w7a8 uses fast ones, with hardly more noise"
