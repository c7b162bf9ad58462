"""Check the noise levels that a pipeline asks a scheduler for: a bundle's schedule has its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.chain.schedule import SamplerRecord
from engines.errors import UsageError
from engines.samplers import NoiseSchedule

CLOSE = 1e-3
"""Difference up to which levels and shifts count as equal: pipelines compute them in float32."""


def check_levels(sampler: SamplerRecord, sigmas: Sequence[float] | None) -> None:
    """Check the levels [S] that a pipeline asks for, as many as the sampler has steps.

    Raises:
        UsageError: they are neither those that the plan chose nor those that pipelines take without being told.
    """
    if sigmas is None:
        return
    untold = np.linspace(1, 1 / len(sigmas), len(sigmas))
    if not any(np.allclose(sigmas, known, rtol=0, atol=CLOSE) for known in (untold, sampler.sigmas) if known is not None):
        raise UsageError(
            "The bundle's schedule has other noise levels.",
            found="sigmas=" + _listed(sigmas),
            expected="no sigmas" if sampler.sigmas is None else _listed(sampler.sigmas),
            mend="leave out sigmas, or build a bundle with these as sampler.sigmas of its plan",
        )


def check_mu(noise_schedule: NoiseSchedule, mu: float | None) -> None:
    """Check the dynamic shift that a pipeline asks for.

    Raises:
        UsageError: it is not that of the schedule, which has one.
    """
    own = noise_schedule.mu
    if mu is not None and own is not None and abs(mu - own) > CLOSE:
        raise UsageError(
            "The bundle's schedule has another dynamic shift.",
            found=f"mu={mu:g}",
            expected=f"{own:g}, which belongs to the size of the bundle's images",
            mend="leave out mu",
        )


def check_original_steps(noise_schedule: NoiseSchedule, steps: int | None) -> None:
    """Check the number of steps that a pipeline says a consistency model was distilled from.

    Raises:
        UsageError: it is not that of the schedule.
    """
    own = noise_schedule.original_inference_steps
    if steps is not None and steps != own:
        raise UsageError(
            "The bundle's schedule is for another distillation.",
            found=f"original_inference_steps={steps}",
            expected=f"{own}, as in the model's scheduler_config.json",
            mend="leave out original_inference_steps",
        )


def _listed(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:g}" for level in levels)
