"""Training steps that the models on latents share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import nn

from tools.latent.data import latents
from tools.latent.first_stage import load_first_stage
from tools.latent.look import look
from tools.training.training import train, write_log

M = TypeVar("M", bound=nn.Module)


def train_on_latents(
    network: Callable[[], M],
    scheduler: DDPMScheduler,
    save: Callable[[M, AutoencoderKL, DDPMScheduler], None],
    minutes: float,
    batch: int,
    log: Path,
) -> None:
    """Train a network for some minutes, save its average once a minute and at the end, and log the quality of its samples."""
    torch.manual_seed(0)
    first_stage = load_first_stage()

    def keep(model: M) -> None:
        save(model, first_stage, scheduler)

    average, rows = train(network(), scheduler, latents(first_stage), minutes, batch, keep=keep)
    keep(average)
    write_log(log, average, {"minutes": minutes, "batch": batch}, look(average, first_stage, scheduler), rows)
