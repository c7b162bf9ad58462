"""Train the first stage on coloured digits on a CPU: it encodes 32x32 RGB images to 8x8 latents of four channels (f = 4) and decodes them.

    python -m tools.latent.first_stage --minutes 4

Writes `model/vae`, which the latent models share. The loss is the squared error plus a light Kullback-Leibler term; the noise that this
term puts on the latents makes the decoder robust to the small errors of a denoiser. After training, classifies images that were encoded
and decoded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.coloured.data import CHANNELS, SIZE, Coloured, coloured
from tools.digits.data import split
from tools.training.recognise import recognised
from tools.training.training import fit, learning_rate, write_log

HERE = Path(__file__).parent
FOLDER = HERE / "model" / "vae"
LATENT_CHANNELS = 4
LATENT_SIZE = SIZE // 4
KL_WEIGHT = 1e-4
RATE = partial(learning_rate, peak=3e-3, warm_up=0.1)
HELD_OUT = 1000


def network() -> AutoencoderKL:
    """Return an autoencoder of 0.65 M parameters, 0.41 M of them in the decoder."""
    return AutoencoderKL(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def loss(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the decoded images, plus the weighted KL divergence in nats per latent value."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(images).latent_dist
        decoded = model.decode(posterior.sample()).sample
    nats = posterior.kl().mean() / posterior.mean[0].numel()
    squared_error: torch.Tensor = (decoded.float() - images).square().mean()
    weighted: torch.Tensor = squared_error + KL_WEIGHT * nats
    return weighted


def load_first_stage() -> AutoencoderKL:
    """Load the committed first stage."""
    model: AutoencoderKL = AutoencoderKL.from_pretrained(FOLDER, use_safetensors=True).float().eval().requires_grad_(False)
    model.register_to_config(_name_or_path="")  # otherwise the saved pipelines would name the folder that it was loaded from
    return model


@torch.no_grad()
def encode(model: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Return the latents that a denoiser is trained on, [N, 4, 8, 8] of variance 1: posterior samples times the scaling factor."""
    pieces = [model.encode(piece).latent_dist.sample() for piece in images.split(256)]
    scale: float = model.config["scaling_factor"]
    return torch.cat(pieces) * scale


@torch.no_grad()
def decode(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [N, 4, 8, 8] to images [N, 3, 32, 32]."""
    pieces: list[torch.Tensor] = [model.decode(piece / model.config["scaling_factor"]).sample for piece in latents.split(256)]
    return torch.cat(pieces)


def save(model: AutoencoderKL, images: torch.Tensor) -> None:
    """Round the weights to float16 and write them, with the scaling factor that gives the latents of these images unit variance."""
    model.register_to_config(scaling_factor=1.0)
    model.register_to_config(scaling_factor=round(1 / encode(model, images).std().item(), 4))
    model.half().save_pretrained(FOLDER)
    model.float()


def look(model: AutoencoderKL, real: Coloured) -> dict[str, float]:
    """Compare the decoded images of held-out digits with the original images."""
    decoded = decode(model, encode(model, real.images)).clamp(-1, 1)
    error = (decoded - real.images).square().mean().item()
    labels = real.labels.numpy()
    return {
        "images": len(labels),
        "psnr_db": round(float(10 * np.log10(4 / error)), 2),
        "recognised": recognised(decoded.numpy(), labels),
        "real_images_recognised": recognised(real.images.numpy(), labels),
    }


@click.command()
@click.option("--minutes", default=4.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=48, show_default=True)
def main(minutes: float, batch: int) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    training, held_out = split()
    model = network()
    some = coloured(1000, generator, training).images
    average, log = fit(model, lambda: loss(model, coloured(batch, generator, training).images), minutes, RATE, partial(save, images=some))
    save(average, some)
    figures = look(load_first_stage(), coloured(HELD_OUT, generator, held_out))
    write_log(HERE / "first_stage_log.json", average, {"minutes": minutes, "batch": batch}, figures, log)


if __name__ == "__main__":
    main()
