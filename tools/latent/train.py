"""Train a latent U-Net with cross attention to a class embedding on a CPU, and write a diffusers folder: the paper's LDM in miniature.

    python -m tools.latent.train --minutes 11

Writes a `StableDiffusionPipeline` without a text encoder around the first stage of `tools.latent.first_stage`. The class embeddings of the
U-Net go to `conditions.npz` beside the pipeline's folder, with the embedding of "no class" as the unconditional value. After training,
draws samples with diffusers' own DDIM and classifies them. The figures go to `training_log.json`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from tools.digits.data import CLASSES
from tools.latent.data import NO_CLASS
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE
from tools.latent.training import train_on_latents
from tools.training.training import linear_betas

HERE = Path(__file__).parent
FOLDER = HERE / "model"
CONDITIONS = HERE / "conditions.npz"
EMBEDDING = 64


class ClassUNet(nn.Module):
    """A U-Net that attends to one learned vector per class; the last is "no class" (the ClassEmbedder of latent diffusion).

    It has 2.5 M parameters, and attention at 4x4 only because the paper's model has none at its full resolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES + 1, EMBEDDING)
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIZE,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            layers_per_block=1,
            block_out_channels=(64, 96),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=EMBEDDING,
            attention_head_dim=4,
            norm_num_groups=16,
        )

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> UNet2DConditionOutput:
        out: UNet2DConditionOutput = self.unet(x, timestep, self.embedding(labels)[:, None])
        return out


def save(model: ClassUNet, first_stage: AutoencoderKL, scheduler: DDPMScheduler) -> None:
    """Round the weights to float16, and write the pipeline's folder and the table of embeddings [10, 1, 64]."""
    model.half()
    pipeline = StableDiffusionPipeline(
        vae=first_stage.half(),
        unet=model.unet,
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(FOLDER)
    model.float()
    first_stage.float()
    table = model.embedding.weight.detach().numpy()[:, None]
    np.savez(CONDITIONS, **{"encoder_hidden_states": table[:NO_CLASS], "null.encoder_hidden_states": table[NO_CLASS]})


@click.command()
@click.option("--minutes", default=11.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=64, show_default=True)
def main(minutes: float, batch: int) -> None:
    scheduler = linear_betas()
    scheduler.register_to_config(steps_offset=1)  # as in latent diffusion; the pipeline class deprecates other values
    train_on_latents(ClassUNet, scheduler, save, minutes, batch, HERE / "training_log.json")


if __name__ == "__main__":
    main()
