"""The network of LPIPS (Zhang et al. 2018, version 0.1): AlexNet or VGG16 of torchvision without classifier, and weights for channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NetworkName: TypeAlias = Literal["alex", "vgg"]

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The backbones' input is `(picture - SHIFT) / SCALE` by channel, for pictures in [-1, 1]."""

_EPSILON = 1e-10


@dataclass(frozen=True)
class LpipsLayer:
    """A convolution and its ReLU: `place` in torchvision's `features`, whether its output is compared, and whether pooling comes first."""

    place: int
    outputs: int
    kernel: int = 3
    stride: int = 1
    compared: bool = True
    pooled: bool = False


@dataclass(frozen=True)
class LpipsBackbone:
    """A stack of layers with pooling over windows of `window` by `window` pixels, two pixels apart."""

    window: int
    layers: tuple[LpipsLayer, ...]


def _vgg16() -> LpipsBackbone:
    """Blocks of convolutions, of which the last one is compared."""
    layers, place = [], 0
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for number in range(count):
            layers.append(LpipsLayer(place, width, compared=number == count - 1, pooled=place > 0 and number == 0))
            place += 2
        place += 1
    return LpipsBackbone(2, tuple(layers))


BACKBONES: Mapping[NetworkName, LpipsBackbone] = {
    "alex": LpipsBackbone(
        3,
        (
            LpipsLayer(0, 64, kernel=11, stride=4), LpipsLayer(3, 192, kernel=5, pooled=True), LpipsLayer(6, 384, pooled=True),
            LpipsLayer(8, 256), LpipsLayer(10, 256),
        ),
    ),
    "vgg": _vgg16(),
}  # fmt: skip


class LpipsNetwork(nn.Module):
    """Maps two sets of pictures [n, 3, H, W] in [-1, 1] to their distances [n].

    Weights are called as in the files: `features.<place>.weight` and `lin<number>.model.1.weight`.
    """

    def __init__(self, name: NetworkName) -> None:
        super().__init__()
        self._backbone = BACKBONES[name]
        layers = self._backbone.layers
        self.features = nn.ModuleDict()
        for inputs, layer in zip((3, *(layer.outputs for layer in layers)), layers, strict=False):
            padding = 2 if layer.stride > 1 else layer.kernel // 2
            self.features[str(layer.place)] = nn.Conv2d(inputs, layer.outputs, layer.kernel, stride=layer.stride, padding=padding)
        self._compared = [layer.outputs for layer in layers if layer.compared]
        for number, width in enumerate(self._compared):
            self.add_module(f"lin{number}", nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})}))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        pairs = zip(self._outputs(images), self._outputs(others), strict=True)
        parts = [self._weighed(number, (_unit(one) - _unit(other)).square()) for number, (one, other) in enumerate(pairs)]
        return torch.stack(parts).sum(dim=0)

    def _weighed(self, number: int, differences: Tensor) -> Tensor:
        """Weigh the channels of squared differences [n, C, h, w], and return their mean over the pixels [n]."""
        weighed: Tensor = self.get_submodule(f"lin{number}.model.1")(differences)
        return weighed.mean(dim=(1, 2, 3))

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Return the outputs that are compared."""
        shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x, outputs = (images - shift) / scale, []
        for layer in self._backbone.layers:
            if layer.pooled:
                x = F.max_pool2d(x, self._backbone.window, 2)
            x = F.relu(self.features[str(layer.place)](x))
            if layer.compared:
                outputs.append(x)
        return outputs


def _unit(x: Tensor) -> Tensor:
    """Divide by the length of every pixel's vector of channels."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPSILON)
