"""Train the digit classifier and feature extractor, and write it as ONNX (see `tools.training.classifier`).

    python -m tools.digits.train_classifier

Training uses 80 % of the real images; the printed accuracy is measured on the other 20 %.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from torch import nn

from tools.digits.data import CLASSES, SIZE, digits, split
from tools.training.classifier import Classifier, save_onnx

HERE = Path(__file__).parent


def jitter(images: torch.Tensor) -> torch.Tensor:
    """Shift images by up to two pixels, rotate them by up to 10 degrees and scale them by up to 10 %, as handwriting varies."""
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
    model = Classifier(1, SIZE, CLASSES)
    train(model, images[fit], labels[fit], epochs)
    with torch.no_grad():
        accuracy = (model(images[held_out])[0].argmax(dim=1) == labels[held_out]).double().mean().item()
    save_onnx(model, images[:4], output)
    click.echo(json.dumps({"held_out_accuracy": round(accuracy, 4), "held_out_images": len(held_out), "epochs": epochs}))


if __name__ == "__main__":
    main()
