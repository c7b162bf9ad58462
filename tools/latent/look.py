"""Judge samples of a latent model with the classifier of coloured digits."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import nn

from tools.digits.data import CLASSES
from tools.latent.data import NO_CLASS
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE, decode
from tools.training.recognise import recognised
from tools.training.training import guided, sample

GUIDANCE = 2.0
SAMPLES = 1000


@torch.no_grad()
def look(model: nn.Module, first_stage: AutoencoderKL, scheduler: DDPMScheduler) -> dict[str, float]:
    """Sample with diffusers' own DDIM, and return the share of samples that show the requested digit."""
    labels = torch.arange(SAMPLES) % CLASSES
    shape = (SAMPLES, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    images = sample(guided(model, labels, NO_CLASS, GUIDANCE), scheduler, shape, decode=lambda latents: decode(first_stage, latents))
    return {"samples_recognised": recognised(images.numpy(), labels.numpy()), "samples": SAMPLES, "guidance": GUIDANCE}
