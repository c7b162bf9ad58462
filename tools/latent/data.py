"""Training data of the latent models: coloured digits, encoded once by the first stage."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL

from tools.coloured.data import coloured
from tools.digits.data import CLASSES, split
from tools.latent.first_stage import encode
from tools.training.training import Draw, labelled

NO_CLASS = CLASSES
IMAGES = 10_000
SEED = 0


def latents(first_stage: AutoencoderKL) -> Draw:
    """Encode 10,000 images of the training split, and return a function that draws from their latents [N, 4, 8, 8] with their labels.

    A tenth of the labels are dropped.
    """
    generator = torch.Generator().manual_seed(SEED)
    training, _ = split()
    pieces = [coloured(1000, generator, training) for _ in range(IMAGES // 1000)]
    encoded = torch.cat([encode(first_stage, piece.images) for piece in pieces])
    return labelled(encoded, torch.cat([piece.labels for piece in pieces]), NO_CLASS)
