"""Time whole chains of a bundle against diffusers' own pipeline in PyTorch, in turn in one process.

    python -m tools.benchmark tools/digits/plan.json build/digits --batch-size 8

Ratios are the result: absolute times belong to the machine. diffusers runs its own scheduler of the plan's sampler on the float32 model,
guidance by one doubled batch, as its pipelines do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.machine import cores, processor
from engines.noise import NoiseSource
from engines.sampling import Chain
from engines.timing import interleaved_medians
from ptqd_export.build.context import BuildContext
from ptqd_export.plan import load_plan

DIFFUSERS = "diffusers, PyTorch"


def diffusers_chain(context: BuildContext, batch: int) -> Callable[[], torch.Tensor]:
    """A function that samples `batch` images with diffusers' DDIM scheduler and the float32 network."""
    from diffusers import DDIMScheduler

    sampler, model = context.plan.sampler, context.model
    scheduler = DDIMScheduler.from_pretrained(context.plan_file.model_path / "scheduler")
    scheduler.set_timesteps(sampler.steps)
    rows = np.arange(batch) % (1 if model.conditioning is None else model.conditioning.rows)
    feeds = {} if model.conditioning is None else model.conditioning.feeds(rows, guided=context.guided)
    conditions = [torch.from_numpy(value) for value in feeds.values()]

    @torch.inference_mode()
    def chain() -> torch.Tensor:
        x = torch.randn(batch, *model.sample_shape)
        for timestep in scheduler.timesteps:
            doubled = torch.cat([x, x]) if context.guided else x
            out = model.adapter(doubled, timestep.float().expand(len(doubled)), *conditions)
            if context.guided:
                conditional, unconditional = out.chunk(2)
                out = unconditional + sampler.guidance * (conditional - unconditional)
            x = scheduler.step(out, timestep, x, eta=sampler.eta).prev_sample
        return x

    return chain


def bundle_chains(bundle: Bundle, batch: int) -> dict[str, Callable[[], object]]:
    """One function for every precision of the bundle, full precision first, and one for the schedule's own choice."""
    schedule = bundle.schedule()
    bank = EngineBank(bundle, schedule.sampler.guidance, batch=batch)
    noise = NoiseSource(0, bundle.manifest.model.sample_shape)
    samples = np.arange(batch, dtype=np.int64)
    rows = samples % (1 if bank.conditioning is None else bank.conditioning.rows)
    chains = {f"{name}, ONNX Runtime": Chain(schedule, bank, name) for name in bundle.manifest.precisions}
    chains["schedule, ONNX Runtime"] = Chain(schedule, bank)
    return {name: partial(chain.sample, noise, samples, rows) for name, chain in chains.items()}


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch-size", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(plan: Path, bundle: Path, batch_size: int, rounds: int) -> None:
    """Print a table of whole-chain times and ratios."""
    torch.set_num_threads(cores())
    contestants = {DIFFUSERS: diffusers_chain(BuildContext(load_plan(plan)), batch_size)} | bundle_chains(Bundle.open(bundle), batch_size)
    seconds = interleaved_medians(contestants, rounds)
    _, full, *_ = contestants
    table = Table(title=f"{processor()}, {cores()} cores, batch {batch_size}, median of {rounds} rounds in turn")
    for column in ("whole chain", "ms", "images/s", "against fp32", "against diffusers"):
        table.add_column(column, justify="left" if column == "whole chain" else "right")
    for name, time in seconds.items():
        ratios = (f"{seconds[other] / time:.2f}x" for other in (full, DIFFUSERS))
        table.add_row(name, f"{1000 * time:.0f}", f"{batch_size / time:.1f}", *ratios)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
