"""Train the demo's class-conditional U-Net on the handwritten digits, on a CPU, and write a diffusers folder.

    python -m tools.digits.train --minutes 45

Epsilon prediction, 1000 linear betas, label dropped with probability 0.1 (class 10 is "no class") for classifier-free guidance,
exponential moving average of the weights. Ends by sampling with diffusers' own DDIM and asking the classifier what it sees; the
figures go to `training_log.json`.
"""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from tools.digits.data import CLASSES, SIZE, digits
from tools.digits.recognise import recognised

HERE = Path(__file__).parent
NO_CLASS = CLASSES
GUIDANCE = 1.5


def network() -> UNet2DModel:
    """1.7 M parameters, 6.9 MB in float32; one attention block at 8x8."""
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


def learning_rate(progress: float, peak: float = 1e-3, warm_up: float = 0.02) -> float:
    """Linear warm-up, then a cosine down to 1 % of the peak; `progress` in [0, 1]."""
    if progress < warm_up:
        return peak * progress / warm_up
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def train(model: UNet2DModel, scheduler: DDPMScheduler, minutes: float, batch: int) -> tuple[UNet2DModel, list[dict[str, float]]]:
    """Train for a wall-clock time; returns the averaged model and one log row a minute."""
    images, labels = digits()
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    log: list[dict[str, float]] = []
    losses: list[float] = []
    begin = time.monotonic()
    step = 0
    while (elapsed := time.monotonic() - begin) < minutes * 60:
        chosen = torch.randint(len(images), (batch,))
        clean = images[chosen]
        label = torch.where(torch.rand(batch) < 0.1, NO_CLASS, labels[chosen])
        noise = torch.randn_like(clean)
        timestep = torch.randint(scheduler.config["num_train_timesteps"], (batch,))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(scheduler.add_noise(clean, noise, timestep), timestep, label).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(elapsed / (minutes * 60))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, current in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)
        losses.append(loss.item())
        step += 1
        if elapsed > 60 * (len(log) + 1):
            log.append({"minutes": round(elapsed / 60, 1), "step": step, "loss": round(float(np.mean(losses)), 5)})
            losses.clear()
            click.echo(json.dumps(log[-1]))
    return average, log


@torch.no_grad()
def sample(model: UNet2DModel, scheduler: DDPMScheduler, labels: torch.Tensor, steps: int = 20) -> torch.Tensor:
    """Guided DDIM samples (eta 1) of the given classes, [len(labels), 1, 16, 16]."""
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(steps)
    x = torch.randn(len(labels), 1, SIZE, SIZE)
    for timestep in ddim.timesteps:
        both = model(x.repeat(2, 1, 1, 1), timestep, torch.cat([labels, torch.full_like(labels, NO_CLASS)])).sample
        conditional, unconditional = both.chunk(2)
        x = ddim.step(unconditional + GUIDANCE * (conditional - unconditional), timestep, x, eta=1.0).prev_sample
    return x.clamp(-1, 1)


@click.command()
@click.option("--minutes", default=45.0, show_default=True, help="Training time by the clock.")
@click.option("--batch", default=128, show_default=True)
@click.option("--output", default=HERE / "model", show_default=True, type=click.Path(path_type=Path))
def main(minutes: float, batch: int, output: Path) -> None:
    torch.manual_seed(0)
    model = network()
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    average, log = train(model, scheduler, minutes, batch)
    DDPMPipeline(unet=average, scheduler=scheduler).save_pretrained(output)
    labels = torch.arange(1000) % CLASSES
    accuracy = recognised(sample(average, scheduler, labels).numpy(), labels.numpy())
    summary = {
        "parameters": sum(p.numel() for p in average.parameters()),
        "minutes": minutes,
        "batch": batch,
        "steps": log[-1]["step"] if log else 0,
        "samples_recognised": accuracy,
        "samples": len(labels),
        "guidance": GUIDANCE,
        "log": log,
    }
    (HERE / "training_log.json").write_text(json.dumps(summary, indent=1) + "\n")
    click.echo(json.dumps({key: value for key, value in summary.items() if key != "log"}))


if __name__ == "__main__":
    main()
