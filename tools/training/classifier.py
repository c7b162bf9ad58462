"""The small image classifiers that judge samples of the bundled models, and their export to ONNX.

Input `images`, float32 [batch, C, H, W] in [-1, 1]. Outputs `logits` [batch, 10], `features` [batch, 64] (for Frechet distances) and
`spatial` [batch, 32, 4, 4] (for spatial Frechet distances).
"""

from __future__ import annotations

from pathlib import Path

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

FEATURES = 64
WIDTH = 32
GRID = 4


class Classifier(nn.Module):
    """A network of convolutions down to 4x4 positions and one hidden layer: 0.05 M parameters for 16x16 images, 0.06 M for 32x32."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        layers = _convolution(channels, WIDTH // 2, stride=1)
        width = WIDTH // 2
        while size > GRID:
            layers += _convolution(width, WIDTH, stride=2)
            width, size = WIDTH, size // 2
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(WIDTH * GRID**2, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spatial = self.trunk(images)
        features = self.hidden(spatial)
        return self.head(features), features, spatial


def _convolution(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def save_onnx(model: Classifier, example: torch.Tensor, output: Path) -> None:
    """Write the classifier as ONNX with a dynamic batch size, without source lines or node metadata, which depend on the machine."""
    program = torch.onnx.export(
        model.eval(),
        (example,),
        input_names=["images"],
        output_names=["logits", "features", "spatial"],
        dynamo=True,
        opset_version=21,
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=65536)}},
        verbose=False,
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    program.save(output)
