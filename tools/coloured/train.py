"""Train the unconditional U-Net on coloured digits on a CPU, and write a diffusers folder.

    python -m tools.coloured.train --minutes 50

After training, draws samples with diffusers' own DDIM and compares them with real images by the classifier's confidence and features. The
figures go to `training_log.json`.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from engines.apps.evaluate.metrics.feature_statistics import FeatureStatistics
from engines.apps.evaluate.metrics.frechet import frechet_distance
from tools.coloured.data import CHANNELS, SIZE, coloured
from tools.digits.data import split
from tools.training.recognise import confidence, seen
from tools.training.training import linear_betas, sample, squared_error, train, write_log

HERE = Path(__file__).parent
SAMPLES = 1000
COLOUR_VARIANCE = 0.06
"""Variance of a channel's mean over an image."""
COLOUR_WEIGHT = 0.1


def network() -> UNet2DModel:
    """Return a U-Net of 1.7 M parameters, 6.8 MB in float32, with three resolutions and attention at 8x8 only.

    Each norm has a single group. A norm removes the mean of each group, and with one group this removes little of the mean colour.
    """
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=1,
        attention_head_dim=32,
    )


def colour_aware(error: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """Mean squared error, plus an extra term for the error of the mean colour.

    The mean is one of 1,024 modes of a channel, and plain training leaves it half wrong. Early in a chain this error is divided by
    sqrt(alpha_bar) = 0.01 and colours whole images. The term is weighted by the share of noise in the variance of the mean, because only
    this share of the noise can be predicted. The best predictor remains the conditional mean.
    """
    pixels = SIZE**2
    noise_share = (1 - alpha_bar) / (1 - alpha_bar + pixels * COLOUR_VARIANCE * alpha_bar)
    colour = pixels * (noise_share[:, None] * error.mean(dim=(2, 3)).square()).mean()
    return squared_error(error, alpha_bar) + COLOUR_WEIGHT * colour


@torch.no_grad()
def look(model: UNet2DModel, scheduler: DDPMScheduler, generator: torch.Generator) -> dict[str, float]:
    """Return the classifier's confidence in samples and real images, and the Frechet distance between their features."""
    samples = sample(lambda x, timestep: model(x, timestep).sample, scheduler, (SAMPLES, CHANNELS, SIZE, SIZE))
    logits, features = seen(samples.numpy())
    real_logits, real_features = seen(coloured(SAMPLES, generator).images.numpy())
    return {
        "samples": SAMPLES,
        "confidence": confidence(logits),
        "confidence_in_real_images": confidence(real_logits),
        "frechet_distance": frechet_distance(*(FeatureStatistics.of(each).gaussian() for each in (features, real_features))),
    }


@click.command()
@click.option("--minutes", default=50.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=96, show_default=True)
@click.option("--output", default=HERE / "model", show_default=True, type=click.Path(path_type=Path))
def main(minutes: float, batch: int, output: Path) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    training, _ = split()
    scheduler = linear_betas()
    average, log = train(
        network(), scheduler, lambda count: (coloured(count, generator, training).images, None), minutes, batch, colour_aware
    )
    DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(output)
    figures = look(average, scheduler, generator)
    write_log(HERE / "training_log.json", average, {"minutes": minutes, "batch": batch}, figures, log)


if __name__ == "__main__":
    main()
