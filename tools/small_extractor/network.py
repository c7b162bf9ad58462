"""The network of the small extractor: convolutions at two scales, whose means over the picture are projected to the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 64
COARSE = 32
"""Side of the reduced picture, in pixels."""

WIDTHS = (24, 32, 48, 64, 96)


class SmallExtractor(nn.Module):
    """Maps pictures [n, 3, H, W] of any size to features [n, 64].

    The same convolutions see the picture as it is and reduced to 32 by 32 pixels. There is no normalization, which would hide differences
    of contrast, and no activation behind the projection, so that the features are near to normally distributed.
    """

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *WIDTHS), WIDTHS, strict=False)
        self.stages = nn.ModuleList(nn.Conv2d(*pair, 3, stride=1 + (number > 0), padding=1) for number, pair in enumerate(pairs))
        self.projection = nn.Linear(2 * sum(WIDTHS), FEATURES)
        for name, weight in self.stages.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        coarse = F.interpolate(images, (COARSE, COARSE), mode="bilinear", antialias=True)
        features: Tensor = self.projection(torch.cat((*self._means(images), *self._means(coarse)), dim=1))
        return features

    def _means(self, x: Tensor) -> list[Tensor]:
        """Return the mean over the picture of every stage's output, [n, width] each."""
        means = []
        for stage in self.stages:
            x = F.relu(stage(x))
            means.append(x.mean(dim=(2, 3)))
        return means
