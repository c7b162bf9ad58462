"""Train the classifier and feature extractor of coloured digits, and write it as ONNX (see `tools.training.classifier`).

    python -m tools.coloured.train_classifier

The features are trained to predict the digit and, by a linear read-out, the colours of the ink, the background and the whole image. With
features that encode only shapes, a Frechet distance would miss a drift of the mean colour. Training uses the digits of the training split;
the printed figures are measured on the held-out digits.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch
from torch import nn

from tools.coloured.data import CHANNELS, SIZE, Coloured, coloured
from tools.digits.data import CLASSES, split
from tools.training.classifier import FEATURES, Classifier, save_onnx

HERE = Path(__file__).parent
COLOUR_WEIGHT = 4.0
"""Weight of the colours' mean squared error relative to the digits' cross entropy."""


def colours(real: Coloured) -> torch.Tensor:
    """Colours of ink, background and the image's mean, [N, 9]."""
    return torch.cat([real.ink, real.ground, real.images.mean(dim=(2, 3))], dim=1)


def train(model: Classifier, read_out: nn.Linear, steps: int, batch: int = 128) -> None:
    generator = torch.Generator().manual_seed(0)
    training, _ = split()
    parameters = [*model.parameters(), *read_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        real = coloured(batch, generator, training)
        logits, features, _ = model(real.images)
        loss = nn.functional.cross_entropy(logits, real.labels, label_smoothing=0.05)
        loss = loss + COLOUR_WEIGHT * nn.functional.mse_loss(read_out(features), colours(real))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def held_out_figures(model: Classifier, read_out: nn.Linear, count: int = 2000) -> dict[str, float]:
    """Share of digits recognised, and share of the colours' variance explained, on digits that training did not use."""
    real = coloured(count, torch.Generator().manual_seed(1), split()[1])
    logits, features, _ = model(real.images)
    unexplained = (read_out(features) - colours(real)).var(dim=0) / colours(real).var(dim=0)
    accuracy = (logits.argmax(dim=1) == real.labels).double().mean()
    return {"held_out_accuracy": round(accuracy.item(), 4), "colours_explained": round(1 - unexplained.max().item(), 4)}


@click.command()
@click.option("--steps", default=3000, show_default=True)
@click.option("--output", default=HERE / "classifier.onnx", show_default=True, type=click.Path(path_type=Path))
def main(steps: int, output: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(CHANNELS, SIZE, CLASSES)
    read_out = nn.Linear(FEATURES, 9)
    train(model, read_out, steps)
    save_onnx(model, torch.zeros(4, CHANNELS, SIZE, SIZE), output)
    click.echo(json.dumps(held_out_figures(model, read_out) | {"steps": steps}))


if __name__ == "__main__":
    main()
