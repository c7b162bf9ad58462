"""The training loop of the bundled models, which runs for some minutes on a CPU, and sampling from a trained denoiser.

Training uses bfloat16 autocast, AdamW and an exponential moving average of the weights; the averaged model is the one that is kept.
Denoisers predict epsilon.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

M = TypeVar("M", bound=nn.Module)

Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor | None]]
"""Draws `count` clean images, float32 [count, C, H, W], and their class numbers [count], or None without classes."""
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Predicts the noise from states [N, C, H, W] and a timestep."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns a scalar loss from the error of the predicted noise [N, C, H, W] and the states' alpha_bar [N]."""

PEAK = 1e-3
LONGEST_DECAY = 0.999
NO_CLASS_SHARE = 0.1
"""Share of the training images that are shown without their class."""


def linear_betas() -> DDPMScheduler:
    """Return a scheduler of 1000 linear betas from 1e-4 to 0.02 (Ho et al. 2020)."""
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)


def learning_rate(progress: float, peak: float = PEAK, warm_up: float = 0.02) -> float:
    """Learning rate at `progress` in [0, 1]: linear warm-up, then a cosine down to 1 % of the peak."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def squared_error(error: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all elements."""
    return error.square().mean()


def idle_machine_s() -> float:
    """Processor time divided by the number of threads, in seconds: what a wall clock would show on an otherwise idle machine."""
    return time.process_time() / torch.get_num_threads()


def fit(
    model: M,
    loss_of: Callable[[], torch.Tensor],
    minutes: float,
    rate: Callable[[float], float] = learning_rate,
    keep: Callable[[M], None] = lambda _: None,
) -> tuple[M, list[dict[str, float]]]:
    """Train a model for some minutes.

    Args:
        model: model to train, in its current mode (training or evaluation).
        loss_of: draws a batch and returns the model's loss on the batch.
        minutes: training time on an otherwise idle machine.
        rate: returns the learning rate for the progress in [0, 1].
        keep: called once a minute with the averaged model, so that the result of an interrupted training is not lost.

    Returns:
        The averaged model and one log row per minute.
    """
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-4)
    log: list[dict[str, float]] = []
    losses: list[float] = []
    begin = idle_machine_s()
    step = 0
    while (elapsed := idle_machine_s() - begin) < minutes * 60:
        loss = loss_of()
        for group in optimizer.param_groups:
            group["lr"] = rate(elapsed / (minutes * 60))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _update_average(average, model, decay=min(LONGEST_DECAY, (1 + step) / (10 + step)))
        losses.append(loss.item())
        step += 1
        if elapsed > 60 * (len(log) + 1):
            log.append({"minutes": round(elapsed / 60, 1), "step": step, "loss": round(float(np.mean(losses)), 5)})
            losses.clear()
            keep(average)
            click.echo(json.dumps(log[-1]))
    return average, log


def train(
    model: M,
    scheduler: DDPMScheduler,
    draw: Draw,
    minutes: float,
    batch: int,
    loss_of: Loss = squared_error,
    keep: Callable[[M], None] = lambda _: None,
) -> tuple[M, list[dict[str, float]]]:
    """Train a denoiser for some minutes; return the averaged model and one log row per minute."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return fit(model, lambda: loss_of(*_error(model, scheduler, *draw(batch))), minutes, keep=keep)


def _error(
    model: nn.Module, scheduler: DDPMScheduler, clean: torch.Tensor, label: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the error of the predicted noise at random timesteps, and the alpha_bar of those timesteps."""
    clean = clean.contiguous(memory_format=torch.channels_last)
    noise = torch.randn_like(clean)
    timestep = torch.randint(scheduler.config["num_train_timesteps"], (len(clean),))
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the backward pass of the fused kernel takes twice as long
        predicted = model(scheduler.add_noise(clean, noise, timestep), timestep, label).sample
    return predicted.float() - noise, scheduler.alphas_cumprod[timestep]


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for kept, current in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(current, 1 - decay)


def labelled(images: torch.Tensor, labels: torch.Tensor, no_class: int) -> Draw:
    """Return a function that draws from images [N, C, H, W] with their labels [N] and drops a tenth of the labels."""

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(images), (count,))
        return images[chosen], torch.where(torch.rand(count) < NO_CLASS_SHARE, no_class, labels[chosen])

    return draw


def guided(model: nn.Module, labels: torch.Tensor, no_class: int, guidance: float) -> Predict:
    """Return the model's guided prediction for one sample of each label; the unconditional branch has no class."""
    condition = torch.cat([labels, torch.full_like(labels, no_class)])

    def predict(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        both: torch.Tensor = model(x.repeat(2, 1, 1, 1), timestep.expand(len(condition)), condition).sample
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return predict


@torch.no_grad()
def sample(
    predict: Predict,
    scheduler: DDPMScheduler,
    shape: tuple[int, ...],
    steps: int = 20,
    decode: Callable[[torch.Tensor], torch.Tensor] = lambda states: states,
) -> torch.Tensor:
    """Sample with diffusers' own DDIM (eta 1): final states, float32 of the given shape, decoded to images in [-1, 1]."""
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    x = torch.randn(shape)
    for timestep in ddim.timesteps:
        x = ddim.step(predict(x, timestep), timestep, x, eta=1.0).prev_sample
    return decode(x).clamp(-1, 1)


def write_log(
    path: Path, model: nn.Module, settings: Mapping[str, float], figures: Mapping[str, float], log: list[dict[str, float]]
) -> None:
    """Write the settings, results and log of a training as JSON, and print everything but the log rows."""
    steps = log[-1]["step"] if log else 0
    summary = {"parameters": sum(parameter.numel() for parameter in model.parameters()), **settings, "steps": steps, **figures}
    path.write_text(json.dumps(summary | {"log": log}, indent=1) + "\n")
    click.echo(json.dumps(summary))
