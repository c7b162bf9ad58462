"""The weighted layers of a network as the graph shows them, shared by calibration and export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Op = Literal["Conv", "Gemm", "MatMul"]
Role = Literal["inner", "condition", "boundary", "embedding"]


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Attributes:
        name: module name, also the stem of its parameters' names (`<name>.weight`).
        op: the ONNX operator that the layer was traced to.
        role: `boundary` for the first and last layers between state and output, `embedding` for vectors that do not depend on
            the state (time and class embeddings), `condition` for sequences and images that do not (keys and values of a prompt), else
            `inner`.
        shape: shape of the weight in torch's order (output channels first).
        macs: multiply-accumulates per sample.
        source: name of the first layer that reads the same tensor; layers with the same source share one activation quantizer.
    """

    name: str
    op: Op
    role: Role
    shape: tuple[int, ...]
    macs: int
    source: str

    @property
    def weights(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count
