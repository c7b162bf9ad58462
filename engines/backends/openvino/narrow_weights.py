"""Which graphs cannot saturate: those whose integer products have weights within [-64, 63].

Processors without VNNI sum pairs of products of 8-bit numbers in 16 bits. With such weights a pair is at most 2 x 255 x 64 = 32,640 in
magnitude, which fits.
"""

from __future__ import annotations

from typing import Any

LOWEST, HIGHEST = -64, 63

_PRODUCTS = ("MatMul", "Convolution", "GroupConvolution")
_UNPACKING = ("Convert", "Subtract", "Multiply", "Transpose", "Reshape", "Unsqueeze", "Squeeze")
"""What lies between integers and the operator that multiplies them; the integers come from the first input."""


def has_narrow_weights(model: Any) -> bool:
    """Return whether every product of quantized activations in an `openvino.Model` has constant integer weights within [-64, 63].

    A product of float activations runs in float, whatever its weights.
    """
    products = (node for node in model.get_ordered_ops() if node.get_type_name() in _PRODUCTS)
    return all(_is_narrow(_origin(node, 1)) for node in products if _origin(node, 0).get_type_name() == "FakeQuantize")


def _is_narrow(weight: Any) -> bool:
    if weight.get_type_name() != "Constant":
        return False
    if weight.get_element_type().bitwidth < 7:
        return True  # its data are packed bytes
    values = weight.get_data()
    return bool(values.dtype.kind in "iu" and values.min() >= LOWEST and values.max() <= HIGHEST)


def _origin(node: Any, index: int) -> Any:
    """Return the node that makes the integers of an input, or whatever makes it if that is something else."""
    found = node.input_value(index).get_node()
    while found.get_type_name() in _UNPACKING:
        found = found.input_value(0).get_node()
    return found
