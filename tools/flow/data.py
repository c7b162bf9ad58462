"""Training data of the flow: latents of coloured digits with the prompts that describe them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL

from tools.coloured.data import coloured
from tools.digits.data import split
from tools.flow.words import UNNAMED, colour_of, every_prompt, number_of
from tools.latent.data import IMAGES, SEED
from tools.latent.first_stage import encode

UNNAMED_SHARE, EMPTY_SHARE = 0.25, 0.1
"""Shares of a colour that the prompt leaves out, and of prompts that are empty."""


def described(first_stage: AutoencoderKL) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """Encode 10,000 images of the training split, and return a function that draws latents [N, 4, 8, 8] and prompts' numbers [N]."""
    generator = torch.Generator().manual_seed(SEED)
    training, _ = split()
    pieces = [coloured(1000, generator, training) for _ in range(IMAGES // 1000)]
    encoded = torch.cat([encode(first_stage, piece.images) for piece in pieces])
    digit, ink, ground = (
        torch.cat([values(piece) for piece in pieces])
        for values in (lambda one: one.labels, lambda one: colour_of(one.ink), lambda one: colour_of(one.ground))
    )

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(encoded), (count,))
        number = number_of(digit[chosen], *(torch.where(_lost(count, UNNAMED_SHARE), UNNAMED, one[chosen]) for one in (ink, ground)))
        return encoded[chosen], torch.where(_lost(count, EMPTY_SHARE), len(every_prompt()) - 1, number)

    return draw


def _lost(count: int, share: float) -> torch.Tensor:
    return torch.rand(count) < share
