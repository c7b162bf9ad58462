"""Train the class-conditional diffusion transformer on latents of coloured digits on a CPU, and write a diffusers folder.

    python -m tools.dit.train --minutes 11

Writes a `DiTPipeline` around the first stage of `tools.latent.first_stage`. After training, draws samples with diffusers' own DDIM and
classifies them. The figures go to `training_log.json`.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTPipeline, DiTTransformer2DModel

from tools.digits.data import CLASSES
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE
from tools.latent.training import train_on_latents
from tools.training.training import linear_betas

HERE = Path(__file__).parent
FOLDER = HERE / "model"


def network() -> DiTTransformer2DModel:
    """Return a DiT of 2.1 M parameters: six blocks of width 128 on 4x4 patches of 2x2 latents.

    The blocks are initialised as the identity (adaLN-Zero, Peebles & Xie 2023).
    """
    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        sample_size=LATENT_SIZE,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    for layer in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return model.eval()  # in training mode each block would also drop labels


def save(model: DiTTransformer2DModel, first_stage: AutoencoderKL, scheduler: DDPMScheduler) -> None:
    """Round the weights to float16 and write the pipeline's folder."""
    names = {number: str(number) for number in range(CLASSES)}
    DiTPipeline(model.half(), first_stage.half(), scheduler, id2label=names).save_pretrained(FOLDER)
    model.float()
    first_stage.float()


@click.command()
@click.option("--minutes", default=11.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=64, show_default=True)
def main(minutes: float, batch: int) -> None:
    train_on_latents(network, linear_betas(), save, minutes, batch, HERE / "training_log.json")


if __name__ == "__main__":
    main()
