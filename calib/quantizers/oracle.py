"""The fake-quantized network in torch: the numerical oracle that exported graphs must match."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from calib.quantizers.low_rank_branch import LowRankBranch
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.quantizers import ActivationQuantizer, WeightQuantizer
from calib.quantizers.sharing_copy import sharing_copy


def fake_quantized(
    network: nn.Module, layers: Collection[QuantizedLayer], dtype: torch.dtype = torch.float32, device: str | None = None
) -> nn.Module:
    """Return a copy of the network that computes what the quantized graph means, in float32 or float64.

    The copy stores the integers of the quantized layers, and dequantizes a layer's weight while the layer runs: all weights in float64
    would take more memory than the rest of a build.

    Args:
        network: full-precision network; not modified.
        layers: quantized layers; all other layers stay in float.
        dtype: type of the arithmetic. Scales are float32 values in either case.
        device: device of the copy; None leaves everything where it is.
    """
    rest = sharing_copy(network, without={f"{layer.layer.name}.weight" for layer in layers})
    oracle = nn.Module.to(rest, device=device, dtype=dtype).eval()  # the `to` of diffusers networks warns about every cast
    for layer in layers:
        fake_quantize(oracle.get_submodule(layer.layer.name), layer, dtype)
    return oracle


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute convolutions in float32 on a GPU while the `with` block runs: TensorFloat-32, torch's default, adds noise of its own."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield


def fake_quantize(module: nn.Module, layer: QuantizedLayer, dtype: torch.dtype) -> None:
    """Give a module its integer weight and dequantized bias, and attaches its branch and fake quantizers to its input and output."""
    device = module.get_parameter("weight").device
    module.register_parameter("weight", nn.Parameter(layer.integers.to(device), requires_grad=False))
    parametrize.register_parametrization(module, "weight", _Dequantized(layer.weight, dtype), unsafe=True)  # unsafe: the dtype changes
    bias = layer.dequantized_bias(dtype)
    if bias is not None:
        module.register_parameter("bias", nn.Parameter(bias.to(device), requires_grad=False))
    if layer.branch is not None:
        attach_branch(module, layer.branch)
    if layer.input is not None:
        module.register_forward_pre_hook(_before(layer.input))
    if layer.output is not None:
        module.register_forward_hook(_after(layer.output))


def attach_branch(module: nn.Module, branch: LowRankBranch) -> list[RemovableHandle]:
    """Let a module add its branch to its output. What quantizes its input must be attached later: the branch reads the input itself."""
    beside = _Beside(branch)
    return [module.register_forward_pre_hook(beside.before), module.register_forward_hook(beside.after)]


class _Beside:
    """Carries what the branch computes from the input of a module to its output."""

    def __init__(self, branch: LowRankBranch) -> None:
        self._branch, self._value = branch, torch.zeros(())

    def before(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._value = self._branch(args[0])

    def after(self, _module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self._value


class _Dequantized(nn.Module):
    """Dequantizes a weight from its integers whenever the weight is read."""

    def __init__(self, quantizer: WeightQuantizer, dtype: torch.dtype) -> None:
        super().__init__()
        self._quantizer = quantizer
        self._dtype = dtype

    def forward(self, integers: Tensor) -> Tensor:
        return self._quantizer.dequantize(integers, self._dtype)


def _before(quantizer: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (quantizer.fake(args[0]), *args[1:])

    return hook


def _after(quantizer: ActivationQuantizer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(_module: nn.Module, _args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return quantizer.fake(out)

    return hook
