"""The settings of a bundle's schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from engines.bundle.bundle import Bundle


@dataclass(frozen=True)
class ScheduleInfo:
    """The settings of one schedule.

    Attributes:
        name: name of the schedule.
        sampler: name of the sampler, such as `ddim`.
        steps: number of sampling steps.
        eta: share of the ancestral noise: 0 is deterministic, 1 is ancestral.
        guidance: guidance scale that the corrections were fitted at; up to 1 is none.
        mode: correction of the network's output: `auto`, `none`, `ptqd`, `signed`, `bounded`, `joint` or `mmse`.
        parts: fitted parts of the correction, from `gain` and `offset`.
        variance: treatment of the variance that quantization adds: `schedule`, `shift` or `none`.
        policy: rule that chose the precisions: `snr`, `budget` or `fixed`.
        precision_steps: number of network evaluations at each precision; those that reuse features at a cut count apart, such as
            `w4a8+skip_3`.
        chosen: what `auto` chose for a chain of each precision, such as `joint + variance`.
    """

    name: str
    sampler: str
    steps: int
    eta: float
    guidance: float
    mode: str
    parts: tuple[str, ...]
    variance: str
    policy: str
    precision_steps: Mapping[str, int]
    chosen: Mapping[str, str]


def schedules_of(bundle: Bundle) -> dict[str, ScheduleInfo]:
    """Return the settings of every schedule by name.

    Raises:
        BundleError: a schedule is damaged.
    """
    return {name: _info(bundle, name) for name in bundle.schedules}


def _info(bundle: Bundle, name: str) -> ScheduleInfo:
    schedule = bundle.schedule(name)
    sampler, correction = schedule.sampler, schedule.correction
    return ScheduleInfo(
        name=name,
        sampler=sampler.name,
        steps=sampler.steps,
        eta=sampler.eta,
        guidance=sampler.guidance,
        mode=correction.mode,
        parts=correction.parts,
        variance=correction.variance,
        policy=schedule.policy,
        precision_steps=dict(Counter(step.network for step in schedule.steps)),
        chosen={one.chain: one.correction.label for one in schedule.judged if one.chosen and one.chain is not None},
    )
