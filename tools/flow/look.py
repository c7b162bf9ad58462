"""Judge samples of the flow with the classifier of coloured digits, and their colours by hue; or draw some of them.

    python -m tools.flow.look tools/flow/student --guidance 1 --steps 4 --output build/flow-student.png

The picture has a row for each digit, in ten pairs of colours. Prints the pooled PSNR to what the teacher draws from the same noise in
20 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from PIL import Image

from engines.apps.evaluate.metrics.paired import image_errors, pooled_psnr
from tools.digits.data import CLASSES
from tools.flow.network import TEACHER, PromptedFlow, flow_samples, guided_flow, load_network
from tools.flow.words import COLOURS, colour_of, number_of
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE, decode, load_first_stage
from tools.training.recognise import recognised

SAMPLES = 500


def drawn(
    model: PromptedFlow,
    first_stage: AutoencoderKL,
    scheduler: DPMSolverMultistepScheduler,
    guidance: float,
    steps: int,
    prompts: torch.Tensor,
) -> torch.Tensor:
    """Return images [N, 3, 32, 32] in [-1, 1] of prompts by number [N], always from the same noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(prompts), LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=generator)
    return decode(first_stage, flow_samples(guided_flow(model, prompts, guidance), scheduler, noise, steps)).clamp(-1, 1)


@torch.no_grad()
def look(
    model: PromptedFlow, first_stage: AutoencoderKL, scheduler: DPMSolverMultistepScheduler, guidance: float, steps: Sequence[int]
) -> dict[str, float]:
    """Return, for chains of these lengths, the shares of samples that show the digit and the colour of the ground that was asked for."""
    generator = torch.Generator().manual_seed(2)
    digits = torch.arange(SAMPLES) % CLASSES
    ink, ground = (torch.randint(len(COLOURS), (SAMPLES,), generator=generator) for _ in range(2))
    prompts, found = number_of(digits, ink, ground), {"samples": float(SAMPLES)}
    for count in steps:
        images = drawn(model, first_stage, scheduler, guidance, count, prompts)
        corner = images[:, :, :3, :3].flatten(2).mean(dim=2)
        found[f"recognised_in_{count}"] = recognised(images.numpy(), digits.numpy())
        found[f"ground_in_{count}"] = round(float((colour_of(corner) == ground).float().mean()), 3)
    return found


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--guidance", default=2.0, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
@torch.no_grad()
def main(folder: Path, guidance: float, steps: int, output: Path) -> None:
    first_stage = load_first_stage()
    digits, pair = (axis.flatten() for axis in torch.meshgrid(torch.arange(CLASSES), torch.arange(10), indexing="ij"))
    prompts = number_of(digits, pair % len(COLOURS), (pair + 2) % len(COLOURS))
    images, reference = (
        drawn(load_network(path), first_stage, DPMSolverMultistepScheduler.from_pretrained(path / "scheduler"), scale, count, prompts)
        for path, scale, count in ((folder, guidance, steps), (TEACHER, 2.0, 20))
    )
    click.echo(f"{pooled_psnr(image_errors(images.numpy(), reference.numpy())):.1f} dB")
    sheet = images.unflatten(0, (CLASSES, 10)).permute(0, 3, 1, 4, 2).reshape(CLASSES * 32, 320, 3)
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((sheet + 1) * 127.5).round().byte().numpy()).resize((960, 960), Image.Resampling.NEAREST).save(output)


if __name__ == "__main__":
    main()
