"""Give the constants of an `openvino.Model` other values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray


def set_constants(openvino: Any, model: Any, values: Mapping[str, NDArray[Any]]) -> None:
    """Replace constants by name. A reader of ONNX files gives constants the names that they have there.

    Args:
        openvino: the package.
        model: model whose constants are replaced.
        values: values by name, of the type and shape of the model's own; packed integers as bytes.

    Raises:
        ValueError: a name is missing: the reader folded the constant.
    """
    found = {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}
    if missing := values.keys() - found.keys():
        raise ValueError(f"the reader of OpenVINO keeps no constant {min(missing)}")
    for name, value in values.items():
        old = found[name]
        kind, shape = old.get_element_type(), old.get_shape()
        tensor = openvino.Tensor(value, shape, kind) if kind.bitwidth < 8 else openvino.Tensor(value)
        new = openvino.op.Constant(tensor)
        new.set_friendly_name(name)
        for user in list(old.output(0).get_target_inputs()):
            user.replace_source_output(new.output(0))
