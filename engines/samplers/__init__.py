"""The samplers by name. Each is a function that compiles a `ChainSpec` into a `SamplerTable`; add a new sampler as an entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from engines.arrays import Float64
from engines.errors import UnknownNameError, UsageError
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule, PredictionType
from engines.samplers.methods.consistency import compile_consistency
from engines.samplers.methods.ddim import compile_ddim
from engines.samplers.methods.ddpm import compile_ddpm
from engines.samplers.methods.deis import compile_deis_2, compile_deis_3
from engines.samplers.methods.dpm_solver import compile_dpm_1, compile_dpm_2m
from engines.samplers.methods.euler import compile_euler, compile_euler_ancestral
from engines.samplers.methods.flow_euler import compile_flow_euler
from engines.samplers.methods.heun import compile_heun, row_of_heun, rows_of_heun
from engines.samplers.methods.lcm import compile_lcm
from engines.samplers.methods.plms import compile_plms, rows_of_plms
from engines.samplers.methods.scm import compile_scm
from engines.samplers.methods.tcd import compile_tcd
from engines.samplers.methods.unipc import compile_unipc_2, compile_unipc_3
from engines.samplers.table import SamplerTable, TableStep

__all__ = ["SAMPLERS", "NoiseSchedule", "Sampler", "SamplerTable", "TableStep", "compile_sampler"]

Compiler: TypeAlias = Callable[[ChainSpec], SamplerTable]


@dataclass(frozen=True)
class Sampler:
    """A sampler that a plan can name.

    Attributes:
        compile: compiles the sampler's table.
        eta: default share of the ancestral noise; the only value allowed, unless `any_eta`.
        any_eta: whether the sampler accepts any eta from 0 to 1.
        clips: whether the sampler uses `clip_sample`.
        spaces: whether the sampler uses the spacings `use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas`.
        timesteps: which timesteps a plan may choose for the sampler, if any: whole ones alone, or those between them too.
        sigmas: whether a plan may choose noise levels for the sampler.
        predicts_clean: whether the history consists of predicted clean samples; see `engines.samplers.table`.
        predictions: prediction types that the sampler supports.
        rows: maps the number of steps to the number of rows in the table.
        row_of: maps a step that a chain may start at to its row in the table; None if a chain can only start at its first step.
    """

    compile: Compiler
    eta: float
    any_eta: bool = False
    clips: bool = False
    spaces: bool = False
    timesteps: Literal["whole", "any"] | None = None
    sigmas: bool = False
    predicts_clean: bool = True
    predictions: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
    rows: Callable[[int], int] = int
    row_of: Callable[[int], int] | None = int


_ON_BETAS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
_ON_BOTH: tuple[PredictionType, ...] = (*_ON_BETAS, "flow")

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler(compile_ddim, eta=0.0, any_eta=True, clips=True),
    "ddpm": Sampler(compile_ddpm, eta=1.0, clips=True, timesteps="whole"),
    "plms": Sampler(compile_plms, eta=0.0, predictions=("epsilon", "v_prediction"), rows=rows_of_plms, row_of=None, predicts_clean=False),
    "dpm++1": Sampler(compile_dpm_1, eta=0.0, spaces=True, timesteps="whole", predictions=_ON_BOTH),
    "dpm++1-sde": Sampler(compile_dpm_1, eta=1.0, spaces=True, timesteps="whole", predictions=_ON_BOTH),
    "dpm++2m": Sampler(compile_dpm_2m, eta=0.0, spaces=True, timesteps="whole", predictions=_ON_BOTH),
    "dpm++2m-sde": Sampler(compile_dpm_2m, eta=1.0, spaces=True, timesteps="whole", predictions=_ON_BOTH),
    "unipc2": Sampler(compile_unipc_2, eta=0.0, spaces=True, predictions=_ON_BOTH),
    "unipc3": Sampler(compile_unipc_3, eta=0.0, spaces=True, predictions=_ON_BOTH),
    "deis2": Sampler(compile_deis_2, eta=0.0, predicts_clean=False),
    "deis3": Sampler(compile_deis_3, eta=0.0, predicts_clean=False),
    "euler": Sampler(compile_euler, eta=0.0, spaces=True, timesteps="any", sigmas=True),
    "euler-ancestral": Sampler(compile_euler_ancestral, eta=1.0),
    "heun": Sampler(compile_heun, eta=0.0, clips=True, spaces=True, timesteps="any", rows=rows_of_heun, row_of=row_of_heun),
    "lcm": Sampler(compile_lcm, eta=1.0, clips=True, timesteps="whole"),
    "tcd": Sampler(compile_tcd, eta=0.3, any_eta=True, timesteps="whole"),
    "consistency": Sampler(compile_consistency, eta=1.0, clips=True, sigmas=True),
    "flow-euler": Sampler(compile_flow_euler, eta=0.0, spaces=True, sigmas=True, predictions=("flow",)),
    "scm": Sampler(compile_scm, eta=1.0, sigmas=True, predictions=("flow",)),
}


def compile_sampler(
    name: str,
    steps: int,
    eta: float,
    schedule: NoiseSchedule,
    alphas: Float64 | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    first: int = 0,
) -> SamplerTable:
    """Compile the table of a chain of `steps` steps.

    Args:
        name: a key of `SAMPLERS`.
        steps: length of the chain, like diffusers' `num_inference_steps`; the table may have more rows, see `Sampler.rows`.
        eta: share of the ancestral noise, 0..1.
        schedule: noise schedule that the model was trained with.
        alphas: cumulative alphas [T] to use instead of `alpha_bar(schedule)`, for example another library's float32 values.
        timesteps: decreasing timesteps [steps] to visit instead of those of the schedule.
        sigmas: decreasing noise levels [steps] to visit instead of those of the schedule, without the end of the chain.
        first: step that the chain starts at, 0..steps - 1. Rows before it are not for use, and those behind look back on no earlier one.

    Raises:
        UsageError: the sampler is unknown, or does not support the steps, eta, alphas, levels or model; or the network takes whole
            timesteps alone, and the chain visits others.
    """
    sampler = SAMPLERS.get(name)
    if sampler is None:
        raise UnknownNameError("The sampler is unknown.", found=name, known=SAMPLERS)
    _check_eta(name, sampler, eta)
    _check_prediction(name, sampler, schedule)
    if alphas is None:
        alphas = alpha_bar(schedule)
    elif alphas.shape != (schedule.num_train_timesteps,):
        raise UsageError("The alphas have the wrong shape.", found=alphas.shape, expected=(schedule.num_train_timesteps,))
    t, levels = _chosen("timesteps", timesteps, steps), _chosen("sigmas", sigmas, steps)
    if t is not None and t.max() >= schedule.num_train_timesteps:
        raise UsageError(
            "A timestep lies beyond the training schedule.",
            found=f"timestep {t.max():g}",
            expected=f"at most {schedule.num_train_timesteps - 1}",
        )
    _check_range(schedule, sigmas)
    table = sampler.compile(ChainSpec(name, steps, eta, schedule.for_steps(steps), alphas, t, levels, first))
    if schedule.whole_timesteps:
        _check_whole(table)
    return table


def _check_whole(table: SamplerTable) -> None:
    between = table.timestep[table.timestep != np.round(table.timestep)]
    if len(between):
        raise UsageError(
            "The network looks timesteps up in a table, and the chain visits one that is not in it.",
            found=f"{table.name}: timestep {between[0]:g}",
            expected="whole timesteps",
            mend="use the sampler ddim, ddpm or plms, or give sampler.timesteps",
        )


def _check_range(schedule: NoiseSchedule, sigmas: Sequence[float] | None) -> None:
    """Refuse noise levels that a network trained on sigmas has not seen."""
    low, high = schedule.sigma_min, schedule.sigma_max
    if sigmas is None or low is None or high is None:
        return
    outside = [sigma for sigma in sigmas if not low <= sigma <= high]
    if outside:
        raise UsageError("A noise level lies outside of the training's.", found=f"sigma = {outside[0]:g}", expected=f"{low:g} to {high:g}")


def _chosen(field: str, levels: Sequence[float] | None, steps: int) -> Float64 | None:
    if levels is not None and len(levels) != steps:
        raise UsageError(f"The chain has another number of {field} than of steps.", found=f"{len(levels)} {field}", expected=f"{steps}")
    return None if levels is None else np.array(levels, dtype=np.float64)


def _check_eta(name: str, sampler: Sampler, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise UsageError("Eta, the share of the ancestral noise, is out of range.", found=f"eta = {eta}", expected="0 to 1")
    if not sampler.any_eta and eta != sampler.eta:
        raise UsageError(
            f"The sampler {name} " + ("always adds its full noise." if sampler.eta == 1 else "adds no noise."),
            found=f"eta = {eta}",
            expected=f"eta = {sampler.eta:g}",
            mend=f"set eta to {sampler.eta:g}, or use the sampler ddim",
        )


def _check_prediction(name: str, sampler: Sampler, schedule: NoiseSchedule) -> None:
    if schedule.prediction_type not in sampler.predictions:
        fitting = [other for other, candidate in SAMPLERS.items() if schedule.prediction_type in candidate.predictions]
        raise UsageError(
            f"The sampler {name} does not support the model's prediction type.",
            found=f"prediction_type = {schedule.prediction_type}",
            expected=" or ".join(sampler.predictions),
            mend=f"use the sampler {' or '.join(fitting)}",
        )
