"""Train a class-conditional U-Net on the handwritten digits on a CPU, and write a diffusers folder.

    python -m tools.digits.train --minutes 45

For classifier-free guidance, the label is dropped with probability 0.1 (class 10 is "no class"). After training, draws samples with
diffusers' own DDIM and classifies them. The figures go to `training_log.json`.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from diffusers import DDPMPipeline, UNet2DModel

from tools.digits.data import CLASSES, SIZE, digits
from tools.training.recognise import recognised
from tools.training.training import guided, labelled, linear_betas, sample, train, write_log

HERE = Path(__file__).parent
NO_CLASS = CLASSES
GUIDANCE = 1.5


def network() -> UNet2DModel:
    """Return a U-Net of 1.7 M parameters, 6.9 MB in float32, with one attention block at 8x8."""
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
        attention_head_dim=32,
        num_class_embeds=CLASSES + 1,
    )


@click.command()
@click.option("--minutes", default=45.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=128, show_default=True)
@click.option("--output", default=HERE / "model", show_default=True, type=click.Path(path_type=Path))
def main(minutes: float, batch: int, output: Path) -> None:
    torch.manual_seed(0)
    scheduler = linear_betas()
    average, log = train(network(), scheduler, labelled(*digits(), NO_CLASS), minutes, batch)
    DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(output)
    labels = torch.arange(1000) % CLASSES
    samples = sample(guided(average, labels, NO_CLASS, GUIDANCE), scheduler, (len(labels), 1, SIZE, SIZE))
    figures = {"samples_recognised": recognised(samples.numpy(), labels.numpy()), "samples": len(labels), "guidance": GUIDANCE}
    write_log(HERE / "training_log.json", average, {"minutes": minutes, "batch": batch}, figures, log)


if __name__ == "__main__":
    main()
