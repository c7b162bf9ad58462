"""The levels that a chain of DPM-Solver++, UniPC or DEIS visits, of a model trained on betas or on a flow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers.chain_spec import ChainSpec
from engines.samplers.levels.flow_levels import shifted
from engines.samplers.levels.noise_levels import final_level, noise_levels, spaced_levels, timesteps_of
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.samplers.levels.timesteps import timesteps_above_the_end

_LEAST_SIGNAL = 1e-6
"""Share of the clean sample in UniPC's first state on a flow. At 0 the level would be infinite; as in diffusers."""


@dataclass(frozen=True, eq=False)
class MultistepLevels:
    """The levels of a chain's states `alpha x0 + sigma eps`.

    Attributes:
        timestep: [S] timesteps given to the network.
        alpha: [S + 1] factor of the clean sample; the last entry is where the chain ends.
        level: [S + 1] noise levels `sigma / alpha`.
        scale: [S] factor to unit variance; None if the states have it.
    """

    timestep: Float64
    alpha: Float64
    level: Float64
    scale: Float64 | None = None


def dpm_levels(spec: ChainSpec) -> MultistepLevels:
    """Return the levels of DPM-Solver++."""
    schedule, levels = spec.schedule, noise_levels(spec.alphas)
    if schedule.prediction_type == "flow":
        sigma = 1 - np.linspace(1, 1 / schedule.num_train_timesteps, spec.steps + 1)
        return _of_flow(spec, shifted(sigma, schedule)[:0:-1])
    # Diffusers does not round timesteps of the cosine schedule.
    return _of_betas(
        spec, levels, final_level(schedule, levels), _noisiest(schedule, levels), rounds=schedule.beta_schedule != "squaredcos_cap_v2"
    )


def unipc_levels(spec: ChainSpec) -> MultistepLevels:
    """Return the levels of UniPC."""
    schedule, levels = spec.schedule, noise_levels(spec.alphas)
    if schedule.prediction_type == "flow":
        sigma = shifted(np.linspace(1, 1 / schedule.num_train_timesteps, spec.steps + 1)[:-1], schedule)
        return _of_flow(spec, np.minimum(sigma, 1 - _LEAST_SIGNAL))
    return _of_betas(spec, levels, final_level(schedule, levels), len(levels))


def deis_levels(spec: ChainSpec) -> MultistepLevels:
    """Return the levels of DEIS, which end at the lowest of the training."""
    levels = noise_levels(spec.alphas)
    return _of_betas(spec, levels, float(levels[0]), len(levels))


def _of_betas(spec: ChainSpec, levels: Float64, final: float, noisiest: int, *, rounds: bool = True) -> MultistepLevels:
    t, level = _visited(spec, levels, noisiest, rounds=rounds)
    level = np.append(level, final)
    return MultistepLevels(t, 1 / np.sqrt(1 + level**2), level)


def _visited(spec: ChainSpec, levels: Float64, noisiest: int, *, rounds: bool) -> tuple[Float64, Float64]:
    """Return the timesteps [S] and noise levels [S] of the plan's timesteps, of the schedule's own levels, or of its spacing."""
    schedule = spec.schedule
    if spec.timesteps is not None:
        return spec.timesteps, levels[spec.timesteps.astype(np.int64)]
    spaced = spaced_levels(schedule, levels[-1], levels[0], spec.steps)
    if spaced is not None:
        between = timesteps_of(spaced, levels)
        if schedule.on_sigmas:
            return between, spaced
        # Diffusers truncates all timesteps to integers; those of Karras's levels it rounds before.
        return np.trunc(between.round() if schedule.use_karras_sigmas and rounds else between), spaced
    t = timesteps_above_the_end(schedule, spec.steps, noisiest)
    return t.astype(np.float64), levels[t]


def _noisiest(schedule: NoiseSchedule, levels: Float64) -> int:
    """Return the number of training timesteps that are not noisier than `lambda_min_clipped`."""
    if schedule.lambda_min_clipped is None:
        return len(levels)
    return int(np.count_nonzero(-np.log(levels) >= schedule.lambda_min_clipped))


def _of_flow(spec: ChainSpec, sigma: Float64) -> MultistepLevels:
    """Return the levels of a flow's states `(1 - sigma) x0 + sigma eps` with shares of noise [S]."""
    schedule = spec.schedule
    if schedule.spacing is not None or schedule.final_sigmas_type != "zero":
        raise UsageError(
            f"On a flow, the sampler {spec.name} has noise levels of its own.",
            found=schedule.spacing or f"final_sigmas_type = {schedule.final_sigmas_type}",
            expected="plain levels that end at zero",
            mend="set the spacing to false in the plan, or use the sampler flow-euler",
        )
    ends = np.append(sigma, 0.0)
    return MultistepLevels(np.trunc(sigma * schedule.num_train_timesteps), 1 - ends, ends / (1 - ends), 1 / np.hypot(1 - sigma, sigma))
