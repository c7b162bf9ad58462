"""Train the small extractor that ships with the run time, on procedural pictures, and write it as ONNX.

    python -m tools.small_extractor.train --minutes 8

The network learns to tell what a picture shows, which digit, how noisy and blurred it is, and its mean colours and their deviations.
"""

from __future__ import annotations

from pathlib import Path

import click
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engines.apps.evaluate.extractor import FEATURES as OUTPUT
from engines.apps.evaluate.extractor import SMALL, SMALL_NAME
from ptqd_export.commands.extractors.picture_inputs import take_pictures
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import trace_module
from tools.small_extractor.network import FEATURES, SmallExtractor
from tools.small_extractor.pictures import KINDS, Painter, Pictures
from tools.training.training import fit, write_log

SIDES = (16, 24, 32, 32, 48, 64)
BATCH = 64
DIGITS = 10
AMOUNTS = 2
MOMENTS = 6
WHITENING_PICTURES = 1500
"""Number of pictures of each size that the features are whitened with."""


class Learner(nn.Module):
    """The extractor and the heads that it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = SmallExtractor()
        self.heads = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, len(KINDS) + DIGITS + AMOUNTS + MOMENTS))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self.heads(self.extractor(images)).split([len(KINDS), DIGITS, AMOUNTS, MOMENTS], dim=1)
        return outputs


def loss(learner: Learner, pictures: Pictures) -> Tensor:
    """Return the sum of the tasks' losses."""
    kinds, digits, amounts, moments = learner(pictures.images)
    true_moments = torch.cat((pictures.images.mean(dim=(2, 3)), pictures.images.std(dim=(2, 3))), dim=1)
    return (
        F.cross_entropy(kinds, pictures.kinds)
        + F.cross_entropy(digits, pictures.digits, ignore_index=-1, reduction="sum") / len(pictures.digits)
        + 10 * F.mse_loss(amounts, pictures.amounts)
        + 10 * F.mse_loss(moments, true_moments)
    )


@torch.no_grad()
def figures(learner: Learner) -> dict[str, float]:
    """Return what the network gets right on digits and a photo that it was not trained on."""
    torch.manual_seed(1)
    pictures = Painter("flower.jpg", held_out=True)(2000, 32)
    kinds, digits, amounts, _ = learner(pictures.images)
    shown = pictures.digits >= 0
    return {
        "held_out_kinds": round((kinds.argmax(dim=1) == pictures.kinds).float().mean().item(), 4),
        "held_out_digits": round((digits.argmax(dim=1) == pictures.digits)[shown].float().mean().item(), 4),
        "held_out_amounts_error": round(F.mse_loss(amounts, pictures.amounts).sqrt().item(), 4),
    }


@torch.no_grad()
def whiten(extractor: SmallExtractor, painter: Painter) -> None:
    """Change the projection so that the features of pictures that are not degraded have mean 0 and unit covariance.

    Otherwise a few features with large variance, mostly about contrast, would decide every Frechet distance.
    """
    torch.manual_seed(2)
    pictures = [painter.clean(WHITENING_PICTURES, side) for side in sorted(set(SIDES))]
    features = torch.cat([extractor(batch) for images in pictures for batch in images.split(BATCH)]).double()
    variances, vectors = torch.linalg.eigh(features.T.cov())
    whitening = (vectors / variances.sqrt()).T
    projection = extractor.projection
    projection.bias.copy_(whitening @ (projection.bias.double() - features.mean(dim=0)))
    projection.weight.copy_(whitening @ projection.weight.double())


def graph_of(extractor: SmallExtractor) -> ir.Model:
    """Return the network as `ptqd-run evaluate` takes it."""
    graph = trace_module(extractor.eval(), {"images": torch.rand(2, 3, 40, 48)}, outputs=(OUTPUT,), least_side=2)
    take_pictures(graph, lambda nodes: nodes.picture, SMALL_NAME)
    return graph


@click.command()
@click.option("--minutes", type=float, default=8, show_default=True, help="Training time on an otherwise idle machine.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("build/small_extractor"), show_default=True, help="Folder to write to."
)
def main(minutes: float, output: Path) -> None:
    """Train, and write the network and the log."""
    torch.manual_seed(0)
    output.mkdir(parents=True, exist_ok=True)
    painter, learner = Painter(), Learner()

    def step() -> Tensor:
        side = SIDES[int(torch.randint(len(SIDES), ()))]
        return loss(learner, painter(BATCH, side))

    trained, log = fit(learner, step, minutes)
    write_log(output / "training_log.json", trained.extractor, {"minutes": minutes}, figures(trained), log)
    whiten(trained.extractor, painter)
    save_graph(graph_of(trained.extractor), output / SMALL.name)


if __name__ == "__main__":
    main()
