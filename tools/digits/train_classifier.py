"""Train the digit classifier and feature extractor, and write it as ONNX.

    python -m tools.digits.train_classifier

Input `images`, float32 [batch, 1, 16, 16] in [-1, 1]. Outputs `logits` [batch, 10], `features` [batch, 64] (for Frechet
distances) and `spatial` [batch, 32, 4, 4] (for spatial ones). Trained on 80 % of the real images; the printed accuracy is that
of the other 20 %.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from tools.digits.data import CLASSES, SIZE, digits, split

HERE = Path(__file__).parent


class Classifier(nn.Module):
    """Three strided convolutions, one hidden layer: 0.06 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.hidden = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * (SIZE // 4) ** 2, 64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spatial = self.trunk(images)
        features = self.hidden(spatial)
        return self.head(features), features, spatial


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Random shifts of up to two pixels, rotations of up to 10 degrees, scales within 10 %: what handwriting varies in."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.35
    scale = 1 + (torch.rand(count) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 4 * 2 / SIZE
    affine = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], dim=1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = nn.functional.affine_grid(affine, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(model: Classifier, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int = 64) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order.split(batch)[: len(images) // batch]:
            logits = model(jitter(images[chosen]))[0]
            loss = nn.functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@click.command()
@click.option("--epochs", default=60, show_default=True)
@click.option("--output", default=HERE / "classifier.onnx", show_default=True, type=click.Path(path_type=Path))
def main(epochs: int, output: Path) -> None:
    torch.manual_seed(0)
    images, labels = digits()
    fit, held_out = split()
    model = Classifier()
    train(model, images[fit], labels[fit], epochs)
    with torch.no_grad():
        accuracy = (model(images[held_out])[0].argmax(dim=1) == labels[held_out]).double().mean().item()
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.onnx.export(
        model,
        (images[:4],),
        input_names=["images"],
        output_names=["logits", "features", "spatial"],
        dynamo=True,
        opset_version=21,
        dynamic_shapes={"images": {0: batch}},
        verbose=False,
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    program.save(output)
    click.echo(json.dumps({"held_out_accuracy": round(accuracy, 4), "held_out_images": len(held_out), "epochs": epochs}))


if __name__ == "__main__":
    main()
