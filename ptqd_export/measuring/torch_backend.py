"""Runs graphs in PyTorch, as they are written, on the plan's calibration device.

A quantized graph computes what `calib.quantizers.oracle.fake_quantized` computes: integers are whole numbers in float32. Weights stay
integers on the device, and a layer dequantizes its own while it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calib.quantizers.oracle import exact_float32
from engines.arrays import Float32
from engines.backends.base import KEPT, Engine, TensorSpec, output_and_kept
from engines.errors import PtqdError
from ptqd_export.models.onnx_graph.graph_module import GraphModule, GraphStep
from ptqd_export.models.onnx_graph.operators.operator_call import Value
from ptqd_export.models.onnx_graph.operators.operator_table import OPERATORS
from ptqd_export.models.onnx_graph.operators.quantizers import QUANTIZERS
from ptqd_export.models.onnx_graph.reading.folded import as_values, folded
from ptqd_export.models.onnx_graph.reading.onnx_file import GraphValue, OnnxGraph, read_onnx

_DTYPES: Mapping[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32), "INT64": np.dtype(np.int64)}


@dataclass(frozen=True)
class TorchBackend:
    """An `engines.backends.base.Backend`.

    Attributes:
        device: PyTorch's name of the device.
    """

    device: str = "cpu"

    def open(self, graph: Path, rows: int) -> TorchEngine:  # noqa: ARG002 (the protocol's: any number of rows may follow)
        return TorchEngine(graph, torch.device(self.device))


class TorchEngine(Engine):
    """One graph in PyTorch, in float32. A call that does not fit the memory of the device runs in halves, and so do those after it.

    Args:
        path: path of the ONNX file.
        device: device that it runs on.

    Raises:
        UsageError: the graph has operators that are not supported.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        graph = read_onnx(path)
        label, inputs = f"{path.stem} in PyTorch", tuple(_spec(one) for one in graph.inputs)
        super().__init__(label, inputs, *output_and_kept([_spec(one) for one in graph.outputs], inputs, label))
        operators, also = {**OPERATORS, **QUANTIZERS}, [one.name for one in graph.outputs[1:]]
        nodes, constants = folded(graph, self.output.name, _constants(graph), operators, kept=("DequantizeLinear",), also=also)
        self._network = GraphModule(nodes, constants, [one.name for one in graph.inputs], self.output.name, operators).to(device)
        self._device = device
        self._most: int | None = None

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        """Return the output and, if the network has any, the features to keep."""
        rows, begin = len(next(iter(feeds.values()))), 0
        specs = [spec for spec in (self.output, self.kept) if spec is not None]
        found = [np.empty((rows, *spec.shape), dtype=np.float32) for spec in specs]
        while begin < rows:
            end = rows if self._most is None else min(rows, begin + self._most)
            try:
                outputs = self._infer({name: value[begin:end] for name, value in feeds.items()})
            except torch.OutOfMemoryError as error:
                self._most = self._fewer(end - begin, error)
                continue
            for whole, part in zip(found, outputs, strict=True):
                whole[begin:end] = part
            begin = end
        return found

    def _infer(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        inputs = [torch.from_numpy(np.ascontiguousarray(feeds[spec.name])).to(self._device) for spec in self.inputs]
        kept: list[Tensor] = []

        def after(step: GraphStep, outputs: Sequence[Value]) -> None:
            kept.extend(cast(Tensor, value) for name, value in zip(step.outputs, outputs, strict=False) if name == KEPT)

        with torch.inference_mode(), exact_float32():
            outputs = [self._network.run(inputs, after=after if self.kept is not None else None), *kept]
        return [out.float().cpu().numpy() for out in outputs]

    def _fewer(self, rows: int, error: Exception) -> int:
        if rows == 1:
            raise PtqdError(
                f"{self.label} does not fit the memory of {self._device}.",
                found=error,
                expected="memory for one sample",
                mend='set target.measure to "cpu", or calibration.device to a device with more memory',
            ) from error
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return rows // 2


def _spec(value: GraphValue) -> TensorSpec:
    return TensorSpec(value.name, _DTYPES[value.dtype], tuple(size for size in (value.shape or ())[1:] if isinstance(size, int)))


def _constants(graph: OnnxGraph) -> dict[str, Value]:
    """Return the constants; those of quantizers are tensors of their own type, which says what their range is."""
    arrays = {name: _wide(array) for name, array in graph.constants.items()}
    quantizers = [node for node in graph.nodes if node.op in ("QuantizeLinear", "DequantizeLinear")]
    own = {name: _tensor(graph.constants[name]) for node in quantizers for name in node.inputs if name in graph.constants}
    return {**as_values({name: array for name, array in arrays.items() if name not in own}), **own}


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype.name == "float8_e4m3fn":
        return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e4m3fn)
    return torch.from_numpy(np.array(_wide(array), order="C"))


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    """Return numbers of types that numpy does not have, such as 4-bit integers, in one that it has."""
    if array.dtype.kind != "V":
        return array
    return array.astype(np.float32 if "float" in array.dtype.name else np.uint8 if array.dtype.name.startswith("uint") else np.int8)
