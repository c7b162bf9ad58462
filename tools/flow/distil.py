"""Distil the flow with guidance into a student for few steps without guidance, on a CPU, and write its diffusers folder.

    python -m tools.flow.distil --minutes 5

The teacher takes noise to clean latents, with guidance. The student is trained on the straight lines between the two ends of these chains
(rectified flow: Liu et al. 2022, arXiv 2209.03003, algorithm 1). It learns the guidance with them, and a nearly straight flow, which
Euler's method can follow in long steps. Half of the training states have noise levels that chains of 4 and 2 steps visit. The student
keeps the teacher's text encoder.
The figures go to `student_log.json`.
"""

from __future__ import annotations

import time
from functools import partial
from typing import NamedTuple

import click
import torch

from tools.flow.look import look
from tools.flow.network import HERE, STUDENT, TEACHER, PromptedFlow, flow_samples, flow_scheduler, guided_flow, load_network, save_network
from tools.flow.train import GUIDANCE, STEPS, flow_loss
from tools.flow.words import every_prompt
from tools.latent.first_stage import LATENT_CHANNELS, LATENT_SIZE, load_first_stage
from tools.training.training import fit, write_log

TEACHER_STEPS = 10
"""Steps of the teacher's chains."""

LEVELS = 4
"""Steps of the chain whose noise levels half of the states have."""

PIECE = 250
"""Chains that are walked at a time."""


class Pairs(NamedTuple):
    """Both ends of chains: noise and clean latents [N, 4, 8, 8], and the prompts' numbers int64 [N]."""

    noise: torch.Tensor
    clean: torch.Tensor
    prompts: torch.Tensor

    def draw(self, count: int) -> Pairs:
        """Return some of the pairs at random."""
        chosen = torch.randint(len(self.prompts), (count,))
        return Pairs(*(values[chosen] for values in self))


def walked(teacher: PromptedFlow, count: int) -> Pairs:
    """Take noise down the teacher's guided chain, for prompts drawn from all."""
    noise, prompts = torch.randn(count, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE), torch.randint(len(every_prompt()), (count,))
    ends = [
        flow_samples(guided_flow(teacher, asked, GUIDANCE), flow_scheduler(2), start, TEACHER_STEPS)
        for start, asked in zip(noise.split(PIECE), prompts.split(PIECE), strict=True)
    ]
    return Pairs(noise, torch.cat(ends), prompts)


def shares(count: int) -> torch.Tensor:
    """Draw shares of noise [count] in (0, 1]: half of them evenly, half from the levels of a chain of `LEVELS` steps."""
    even = 1 - torch.rand(count)
    return torch.where(torch.rand(count) < 0.5, even, (even * LEVELS).ceil() / LEVELS)


@click.command()
@click.option("--minutes", default=5.0, show_default=True, help="Training time on an otherwise idle machine, after the pairs are made.")
@click.option("--batch", default=64, show_default=True)
@click.option("--pairs", default=8000, show_default=True, help="Chains of the teacher to learn from.")
def main(minutes: float, batch: int, pairs: int) -> None:
    torch.manual_seed(0)
    first_stage, scheduler, begin = load_first_stage(), flow_scheduler(1, spacing="trailing"), time.process_time()
    known = walked(load_network(TEACHER), pairs)
    walking = round((time.process_time() - begin) / 60, 1)
    student = load_network(TEACHER)
    student.text.requires_grad_(False)
    keep = partial(save_network, first_stage=first_stage, scheduler=scheduler, folder=STUDENT)

    def loss() -> torch.Tensor:
        some = known.draw(batch)
        return flow_loss(student, some.clean, some.noise, shares(batch), some.prompts)

    average, rows = fit(student, loss, minutes, keep=keep)
    keep(average)
    settings = {"minutes": minutes, "batch": batch, "pairs": pairs, "processor_minutes_of_pairs": walking, "teacher_steps": TEACHER_STEPS}
    write_log(HERE / "student_log.json", average, settings, look(average, first_stage, scheduler, 1.0, STEPS), rows)


if __name__ == "__main__":
    main()
