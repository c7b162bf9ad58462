"""Find the step of a schedule from a pipeline's timestep, which is all that a pipeline says about its position."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from ptqd_export.models.diffusers_models.transformers.transformer_family import TimestepMap

AS_MANY = (
    "call the pipeline with num_inference_steps={steps} and take its scheduler from the bundle too (`use_bundle`), "
    "or add a schedule of another length with `ptqd-export schedule BUNDLE --name NAME --steps N` and select it"
)


ROUNDINGS = 4
"""Units of the last place of float32 by which a pipeline may miss a timestep that it computes; half types round it once."""


def timestep_value(timestep: Tensor | float) -> float:
    """Return the one timestep of a call in float32, as schedules compare it.

    Raises:
        UsageError: the samples of the batch are at different timesteps.
    """
    values = torch.as_tensor(timestep).detach().to("cpu", torch.float32).reshape(-1)
    if bool((values != values[0]).any()):
        raise UsageError(
            "The samples of a batch are at different timesteps.",
            found=", ".join(f"{value:g}" for value in values.tolist()),
            expected="one timestep for all: the schedule picks one engine for a step",
        )
    return float(values[0])


def nearest_timestep(given: Tensor | float, visited: Collection[float], scale: TimestepMap) -> float | None:
    """Return the timestep of a schedule that a pipeline means, or None if it means none of them.

    Some pipelines scale timesteps and round them to the type of their states; so those of the schedule are compared after the same.

    Args:
        given: one timestep for the whole batch, in the pipeline's type and scale.
        visited: timesteps of the schedule, float32.
        scale: the pipeline's scale.

    Raises:
        UsageError: the samples of the batch are at different timesteps, or rounding made two timesteps of the schedule equal.
    """
    value, kind = timestep_value(given), torch.as_tensor(given).dtype
    kind = kind if kind.is_floating_point and kind.itemsize < 4 else torch.float32
    rounded = torch.tensor(list(visited), dtype=torch.float32).to(kind)
    exact = rounded.double() if kind == torch.float32 else rounded  # else 1 - t / 1000 would lose digits where t is near 1000
    far = ((exact * scale.scale + scale.offset).double() - value).abs()
    if float(far.min()) > (ROUNDINGS if kind == torch.float32 else 1) * torch.finfo(kind).eps * abs(value):
        return None
    found = [one for one, is_nearest in zip(visited, (far == far.min()).tolist(), strict=True) if is_nearest]
    if len(found) > 1:
        raise UsageError(
            "The pipeline's timesteps do not tell the steps of the schedule apart.",
            found=f"timestep {value:g}, rounded to {str(kind).removeprefix('torch.')}, for " + " and ".join(f"{one:g}" for one in found),
            expected="a type in which every step has a timestep of its own",
            mend="load the pipeline in float32: the engines keep their own types",
        )
    return found[0]


@dataclass(frozen=True)
class TimestepNetwork:
    """What a pipeline runs at a timestep.

    Attributes:
        network: name of the network, see `engines.chain.features`.
        reuses: whether it reuses the features of an earlier step.
        step: number of the first step at this timestep.
    """

    network: str
    reuses: bool
    step: int


def visits_by_timestep(schedule: Schedule, precision: str | None) -> dict[float, TimestepNetwork]:
    """Return what runs at each timestep: the given precision, else what the schedule says. A shifted timestep is that of its step.

    Raises:
        UsageError: the schedule visits a timestep twice, with different networks, or in a chain whose steps reuse features, or
            extrapolates features.
    """
    if precision is None and schedule.extrapolates:
        raise UsageError(
            "A pipeline does not extrapolate features.",
            found="a schedule whose steps extrapolate those that they reuse",
            expected="a schedule without, or one precision for all steps",
            mend="sample with `ptqd-run sample`, or add a schedule with --reuse CUT:every=K",
        )
    chain, found = Chain(schedule, {}, precision, corrected=False), dict[float, TimestepNetwork]()
    for scheduled in schedule.steps:
        move = chain.move(scheduled)
        taken = TimestepNetwork(move.network, move.reuses, move.index)
        for timestep in {float(np.float32(scheduled.timestep)), float(np.float32(scheduled.corrected.timestep))}:
            before = found.setdefault(timestep, taken)
            if before.network != taken.network or (move.cut is not None and before is not taken):
                raise UsageError(
                    "The schedule visits a timestep twice, with different precisions or steps that reuse features.",
                    found=f"timestep {timestep:g}: {before.network}, then {taken.network}",
                    expected="one network for a timestep: a pipeline does not say which visit it is",
                    mend=f'use one precision for all steps, such as precision="{scheduled.precision}"',
                )
    return found


def unknown_timestep(timestep: float, schedule: Schedule) -> UsageError:
    """Return the error for a timestep that the schedule does not visit."""
    visited = ", ".join(f"{step.timestep:g}" for step in schedule.steps)
    return UsageError(
        "The bundle's schedule does not visit this timestep.",
        found=f"timestep {timestep:g}",
        expected=f"one of {visited}",
        mend=AS_MANY.format(steps=schedule.sampler.steps),
    )
