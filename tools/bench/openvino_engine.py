"""A graph on OpenVINO, in float32 where it is not in integers, for a batch that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.errors import MissingBackendError
from engines.machine import cores

OUTPUT = "out"


class OpenVinoEngine(Engine):
    """See `engines.backends.base.Engine`.

    Args:
        path: the ONNX file.
        rows: of every call.

    Raises:
        MissingBackendError: OpenVINO is not installed.
    """

    def __init__(self, path: Path, rows: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingBackendError("OpenVINO is not installed.", found=str(error), mend="pip install 'ptqd-export[bench]'") from error
        model = openvino.Core().read_model(path)
        model.reshape({_name(value): [rows, *(size.get_length() for size in list(value.partial_shape)[1:])] for value in model.inputs})
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores(), "INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = openvino.compile_model(model, "CPU", config)
        inputs = tuple(_spec(value) for value in self._compiled.inputs)
        (output,) = self._compiled.outputs
        super().__init__(f"{path.stem} on OpenVINO", inputs, TensorSpec(OUTPUT, np.dtype(np.float32), tuple(output.shape)[1:]))

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Float32:
        return np.array(self._compiled(dict(feeds), share_inputs=True)[0], dtype=np.float32)


def _name(value: Any) -> str:
    """Of an input in the graph; the tensor has the names of what it is passed on as, too."""
    return str(value.node.friendly_name)


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(_name(value), np.dtype(value.element_type.to_dtype()), tuple(value.shape)[1:])
