"""Networks of a few layers with their graphs, written node by node, and both in quantized form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantize import QuantizationSettings
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.placement import PLACEMENTS, Placement
from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization

Array = NDArray[Any]
GraphOf = Callable[[str, nn.Module], ir.Model]
Run = Callable[..., Array]

ORT, TRT = PLACEMENTS["onnxruntime"], PLACEMENTS["tensorrt"]
DEFAULT = QuantizationSettings()


class Convolutions(nn.Module):
    """Three convolutions in a row; only the middle one is not a boundary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 5, 3, padding=1)
        self.last = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.middle(torch.relu(self.first(x)))))
        return out

    text = """
        g (float[N,2,6,6] sample, float[4,2,3,3] first_weight, float[4] first_bias, float[5,4,3,3] middle_weight, float[5] middle_bias,
           float[2,5,1,1] last_weight, float[2] last_bias) => (float[N,2,6,6] out)
        {
            a = Conv <pads = [1, 1, 1, 1]> (sample, first_weight, first_bias) b = Relu (a)
            c = Conv <pads = [1, 1, 1, 1]> (b, middle_weight, middle_bias) d = Relu (c)
            out = Conv (d, last_weight, last_bias)
        }"""


class Attention(nn.Module):
    """`query` and `key` read the same tensor, between a first and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.query = nn.Linear(4, 3)
        self.key = nn.Linear(4, 3, bias=False)
        self.last = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        out: Tensor = self.last(self.query(h) * self.key(h))
        return out

    text = """
        g (float[N,7,6] sample, float[6,4] first_weight_T, float[4] first_bias, float[4,3] query_weight_T, float[3] query_bias,
           float[4,3] key_weight_T, float[3,6] last_weight_T, float[6] last_bias) => (float[N,7,6] out)
        {
            a = MatMul (sample, first_weight_T) b = Add (a, first_bias) h = Tanh (b)
            q = MatMul (h, query_weight_T) qb = Add (q, query_bias) k = MatMul (h, key_weight_T) p = Mul (qb, k)
            o = MatMul (p, last_weight_T) out = Add (o, last_bias)
        }"""


class Repeated(nn.Module):
    """The middle layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.middle(torch.relu(self.middle(3 * self.first(x))))))
        return out

    text = """
        g (float[N,2,6,6] sample, float[4,2,1,1] first_weight, float[4] first_bias, float[4,4,3,3] middle_weight, float[4] middle_bias,
           float[2,4,1,1] last_weight, float[2] last_bias) => (float[N,2,6,6] out) <float three = {3}>
        {
            a = Conv (sample, first_weight, first_bias) s = Mul (a, three)
            b = Conv <pads = [1, 1, 1, 1]> (s, middle_weight, middle_bias) c = Relu (b)
            d = Conv <pads = [1, 1, 1, 1]> (c, middle_weight, middle_bias) e = Relu (d)
            out = Conv (e, last_weight, last_bias)
        }"""


class Wide(nn.Module):
    """The middle layer reads three blocks of 32 channels; the 20 input channels of `narrow` do not form a block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 96)
        self.middle = nn.Linear(96, 20, bias=False)
        self.narrow = nn.Linear(20, 8)
        self.last = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.narrow(torch.tanh(self.middle(torch.tanh(self.first(x)))))))
        return out

    text = """
        g (float[N,7,6] sample, float[6,96] first_weight_T, float[96] first_bias, float[96,20] middle_weight_T,
           float[20,8] narrow_weight_T, float[8] narrow_bias, float[8,6] last_weight_T, float[6] last_bias) => (float[N,7,6] out)
        {
            a = MatMul (sample, first_weight_T) b = Add (a, first_bias) c = Tanh (b)
            m = MatMul (c, middle_weight_T) n = Tanh (m)
            r = MatMul (n, narrow_weight_T) s = Add (r, narrow_bias) t = Tanh (s)
            o = MatMul (t, last_weight_T) out = Add (o, last_bias)
        }"""


class Flat(nn.Module):
    """Linear layers on vectors that depend on the state, which become Gemm nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.middle = nn.Linear(32, 20)
        self.last = nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return out

    text = """
        g (float[N,6] sample, float[32,6] first_weight, float[32] first_bias, float[20,32] middle_weight, float[20] middle_bias,
           float[6,20] last_weight, float[6] last_bias) => (float[N,6] out)
        {
            a = Gemm <transB = 1> (sample, first_weight, first_bias) b = Tanh (a)
            m = Gemm <transB = 1> (b, middle_weight, middle_bias) n = Tanh (m)
            out = Gemm <transB = 1> (n, last_weight, last_bias)
        }"""


Kind = type[Convolutions | Attention | Repeated | Wide | Flat]


SHAPES: dict[Kind, tuple[int, ...]] = {
    Convolutions: (2, 6, 6), Attention: (7, 6), Repeated: (2, 6, 6), Wide: (7, 6), Flat: (6,),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, its graph, an input, and the quantized layers."""

    placement: Placement
    network: Convolutions | Attention | Repeated | Wide | Flat
    model: ir.Model
    x: Tensor
    layers: Sequence[QuantizedLayer]

    def layer(self, name: str) -> QuantizedLayer:
        (found,) = (layer for layer in self.layers if layer.layer.name == name)
        return found

    def insert(self) -> ir.Model:
        assert InsertQuantization(self.layers, self.placement)(self.model).modified
        RemoveUnusedNodesPass()(self.model)
        return self.model

    def oracle(self) -> Array:
        with torch.no_grad():
            out: Array = fake_quantized(self.network, self.layers)(self.x).numpy()
        return out


def stored_tensor(model: ir.Model, name: str) -> ir.TensorProtocol:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor
