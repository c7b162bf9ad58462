"""Train the flow transformer with prompts on latents of coloured digits on a CPU, and write a diffusers folder.

    python -m tools.flow.train --minutes 12

Writes a `PixArtAlphaPipeline` around the first stage of `tools.latent.first_stage`. States are `(1 - sigma) clean + sigma noise`, and the
network predicts `noise - clean` (Lipman et al. 2022), at shares of noise drawn as in Stable Diffusion 3 (Esser et al. 2024, section 3.1).
A tenth of the prompts is empty, for guidance. After training, draws samples and classifies them. The figures go to `training_log.json`.
"""

from __future__ import annotations

from functools import partial

import click
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.flow.data import described
from tools.flow.look import look
from tools.flow.network import HERE, TEACHER, PromptedFlow, flow_scheduler, new_network, save_network
from tools.latent.first_stage import load_first_stage
from tools.training.training import fit, write_log

GUIDANCE, STEPS = 2.0, (20, 8, 4, 2)


def flow_loss(model: PromptedFlow, clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the flow from noise [N, C, H, W] to clean states, on the line between both at shares of noise [N]."""
    share = sigma[:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the backward pass of the fused kernel takes twice as long
        predicted = model(torch.lerp(clean, noise, share), sigma, prompts)
    error: torch.Tensor = predicted.float() - (noise - clean)
    return error.square().mean()


@click.command()
@click.option("--minutes", default=12.0, show_default=True, help="Training time on an otherwise idle machine.")
@click.option("--batch", default=64, show_default=True)
def main(minutes: float, batch: int) -> None:
    torch.manual_seed(0)
    first_stage, scheduler = load_first_stage(), flow_scheduler(2)
    draw, model = described(first_stage), new_network()
    keep = partial(save_network, first_stage=first_stage, scheduler=scheduler, folder=TEACHER)

    def loss() -> torch.Tensor:
        clean, prompts = draw(batch)
        return flow_loss(model, clean, torch.randn_like(clean), torch.randn(batch).sigmoid(), prompts)

    average, rows = fit(model, loss, minutes, keep=keep)
    keep(average)
    figures = look(average, first_stage, scheduler, GUIDANCE, STEPS)
    write_log(HERE / "training_log.json", average, {"minutes": minutes, "batch": batch, "guidance": GUIDANCE}, figures, rows)


if __name__ == "__main__":
    main()
