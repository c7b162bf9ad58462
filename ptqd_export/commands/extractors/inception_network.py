"""The Inception network behind published FID figures: InceptionV3 as TensorFlow released it on 2015-12-05, with weights under the names of
torchvision's InceptionV3, as `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid and torch-fidelity has them.

It differs from torchvision's network: average pooling leaves out the padding, the last block has maximum pooling instead, and there are
1008 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
"""Height and width of the pictures that the network takes."""

FEATURES, CLASSES = 2048, 1008

_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_maximum = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
_halve = partial(F.max_pool2d, kernel_size=3, stride=2)


@dataclass(frozen=True)
class Convolution:
    """A convolution, its batch normalization and a ReLU. `kernel` is a number, or height and width."""

    name: str
    outputs: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    padded: bool = True


C = Convolution
Step: TypeAlias = Convolution | tuple[Convolution, ...] | Callable[[Tensor], Tensor]
"""A convolution, several side by side, or a pooling."""
Branch: TypeAlias = tuple[Step, ...]


def _block_a(pooled: int) -> tuple[Branch, ...]:
    return (
        (C("branch1x1", 64),),
        (C("branch5x5_1", 48), C("branch5x5_2", 64, 5)),
        (C("branch3x3dbl_1", 64), C("branch3x3dbl_2", 96, 3), C("branch3x3dbl_3", 96, 3)),
        (_average, C("branch_pool", pooled)),
    )


def _block_b() -> tuple[Branch, ...]:
    return (
        (C("branch3x3", 384, 3, 2, padded=False),),
        (C("branch3x3dbl_1", 64), C("branch3x3dbl_2", 96, 3), C("branch3x3dbl_3", 96, 3, 2, padded=False)),
        (_halve,),
    )


def _block_c(width: int) -> tuple[Branch, ...]:
    row, column = (1, 7), (7, 1)
    return (
        (C("branch1x1", 192),),
        (C("branch7x7_1", width), C("branch7x7_2", width, row), C("branch7x7_3", 192, column)),
        (
            C("branch7x7dbl_1", width), C("branch7x7dbl_2", width, column), C("branch7x7dbl_3", width, row),
            C("branch7x7dbl_4", width, column), C("branch7x7dbl_5", 192, row),
        ),
        (_average, C("branch_pool", 192)),
    )  # fmt: skip


def _block_d() -> tuple[Branch, ...]:
    return (
        (C("branch3x3_1", 192), C("branch3x3_2", 320, 3, 2, padded=False)),
        (
            C("branch7x7x3_1", 192), C("branch7x7x3_2", 192, (1, 7)), C("branch7x7x3_3", 192, (7, 1)),
            C("branch7x7x3_4", 192, 3, 2, padded=False),
        ),
        (_halve,),
    )  # fmt: skip


def _block_e(pool: Callable[[Tensor], Tensor]) -> tuple[Branch, ...]:
    row, column = (1, 3), (3, 1)
    return (
        (C("branch1x1", 320),),
        (C("branch3x3_1", 384), (C("branch3x3_2a", 384, row), C("branch3x3_2b", 384, column))),
        (C("branch3x3dbl_1", 448), C("branch3x3dbl_2", 384, 3), (C("branch3x3dbl_3a", 384, row), C("branch3x3dbl_3b", 384, column))),
        (pool, C("branch_pool", 192)),
    )


STEM: Branch = (
    C("Conv2d_1a_3x3", 32, 3, 2, padded=False), C("Conv2d_2a_3x3", 32, 3, padded=False), C("Conv2d_2b_3x3", 64, 3), _halve,
    C("Conv2d_3b_1x1", 80), C("Conv2d_4a_3x3", 192, 3, padded=False), _halve,
)  # fmt: skip

BLOCKS: Mapping[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_a(32), "Mixed_5c": _block_a(64), "Mixed_5d": _block_a(64),
    "Mixed_6a": _block_b(), "Mixed_6b": _block_c(128), "Mixed_6c": _block_c(160), "Mixed_6d": _block_c(160), "Mixed_6e": _block_c(192),
    "Mixed_7a": _block_d(), "Mixed_7b": _block_e(_average), "Mixed_7c": _block_e(_maximum),
}  # fmt: skip

SPATIAL = "Mixed_6d"
"""Block whose first convolution, `mixed_6/conv` in TensorFlow's graph, sFID is computed from. Its output comes first in the block's."""
SPATIAL_CHANNELS = 7


class NormalizedConvolution(nn.Module):
    """See `Convolution`."""

    def __init__(self, inputs: int, shape: Convolution) -> None:
        super().__init__()
        height, width = (shape.kernel, shape.kernel) if isinstance(shape.kernel, int) else shape.kernel
        padding = (height // 2, width // 2) if shape.padded else (0, 0)
        self.conv = nn.Conv2d(inputs, shape.outputs, (height, width), stride=shape.stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(shape.outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Branches side by side, whose outputs are concatenated.

    Args:
        inputs: number of channels that every branch takes.
        branches: steps of each branch.

    Attributes:
        outputs: number of channels.
    """

    def __init__(self, inputs: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self._branches = branches
        self.outputs = sum(self._add(inputs, branch) for branch in branches)

    def _add(self, width: int, branch: Branch) -> int:
        """Create the convolutions of a branch, and return how many channels the branch gives."""
        for step in branch:
            side_by_side = (step,) if isinstance(step, Convolution) else step if isinstance(step, tuple) else ()
            for one in side_by_side:
                self.add_module(one.name, NormalizedConvolution(width, one))
            width = sum(one.outputs for one in side_by_side) or width
        return width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(branch, x) for branch in self._branches], dim=1)

    def _run(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, Convolution):
                x = self.get_submodule(step.name)(x)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(one.name)(x) for one in step], dim=1)
            else:
                x = step(x)
        return x


class FidInception(Branches):
    """Maps pictures [n, 3, 299, 299], `(level - 128) / 128`, to features [n, 2048], spatial features [n, 7, 17, 17] and logits [n, 1008].

    The logits lack the bias, as in the programs that Inception Scores are published with.
    """

    def __init__(self) -> None:
        super().__init__(3, (STEM,))
        width = self.outputs
        for name, branches in BLOCKS.items():
            block = Branches(width, branches)
            self.add_module(name, block)
            width = block.outputs
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]  # three outputs where a block has one
        x = super().forward(images)
        spatial = x
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            spatial = x[:, :SPATIAL_CHANNELS] if name == SPATIAL else spatial
        features = x.mean(dim=(2, 3))
        return features, spatial, F.linear(features, self.fc.weight)
