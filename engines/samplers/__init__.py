"""Samplers by name. Each is one file whose `compile_NAME` turns a noise schedule into a `SamplerTable`; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers.alphas import alpha_bar
from engines.samplers.ddim import compile_ddim
from engines.samplers.ddpm import compile_ddpm
from engines.samplers.noise_schedule import NoiseSchedule
from engines.samplers.table import SamplerTable, TableStep

__all__ = ["SAMPLERS", "NoiseSchedule", "SamplerTable", "TableStep", "compile_sampler"]

# (steps, eta, schedule, cumulative alphas [T]) to the table; raises UsageError for an eta that the sampler does not have.
Compiler: TypeAlias = Callable[[int, float, NoiseSchedule, Float64], SamplerTable]


@dataclass(frozen=True)
class Sampler:
    """A sampler that plans can name; `eta` is what it takes where a plan does not say."""

    compile: Compiler
    eta: float


SAMPLERS: Mapping[str, Sampler] = {"ddim": Sampler(compile_ddim, eta=0.0), "ddpm": Sampler(compile_ddpm, eta=1.0)}


def compile_sampler(name: str, steps: int, eta: float, schedule: NoiseSchedule, alphas: Float64 | None = None) -> SamplerTable:
    """The table of a chain of `steps` steps.

    Args:
        name: a key of `SAMPLERS`.
        steps: length of the chain, 1..T.
        eta: share of the ancestral noise, 0..1.
        schedule: what the model was trained with.
        alphas: cumulative alphas [T] to use instead of `alpha_bar(schedule)`, such as another library's float32 ones.

    Raises:
        UsageError: unknown sampler, or steps, eta or alphas that do not fit.
    """
    sampler = SAMPLERS.get(name)
    if sampler is None:
        (nearest,) = get_close_matches(name.lower(), SAMPLERS, n=1, cutoff=0)
        raise UsageError("unknown sampler", found=name, expected=" or ".join(SAMPLERS), mend=f'did you mean "{nearest}"?')
    if not 0 <= eta <= 1:
        raise UsageError("eta is a share of the ancestral noise", found=f"eta = {eta}", expected="0 to 1")
    if alphas is None:
        alphas = alpha_bar(schedule)
    elif alphas.shape != (schedule.num_train_timesteps,):
        raise UsageError("wrong shape of alphas", found=alphas.shape, expected=(schedule.num_train_timesteps,))
    return sampler.compile(steps, eta, schedule, alphas)
