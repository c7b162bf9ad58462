"""What a comparison found. Its fields are those of the JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from engines.errors import PtqdError

Decibels = float | None
"""None is infinity: the outputs are the same."""


@dataclass(frozen=True)
class StepFigures:
    """One engine at one step, over all samples.

    Attributes:
        step: of the schedule, 0 is the noisiest.
        timestep: that the networks were given.
        chosen: whether the schedule takes this step with this precision.
        snr_db: of the raw output, after guidance.
        cosine_similarity: likewise.
        psnr_db: likewise.
        max_absolute_error: likewise.
        corrected_snr_db: of the output with the schedule's gain and offset.
    """

    step: int
    timestep: float
    chosen: bool
    snr_db: Decibels
    cosine_similarity: float
    psnr_db: Decibels
    max_absolute_error: float
    corrected_snr_db: Decibels


@dataclass(frozen=True)
class PrecisionFigures:
    """One engine at every step that was compared."""

    engine: str
    mean_snr_db: Decibels
    mean_corrected_snr_db: Decibels
    worst_step: int
    steps: tuple[StepFigures, ...]

    @classmethod
    def of(cls, engine: str, steps: tuple[StepFigures, ...]) -> PrecisionFigures:
        return cls(
            engine=engine,
            mean_snr_db=_mean([step.snr_db for step in steps]),
            mean_corrected_snr_db=_mean([step.corrected_snr_db for step in steps]),
            worst_step=min(steps, key=lambda step: infinite(step.snr_db)).step,
            steps=steps,
        )

    @property
    def worst(self) -> StepFigures:
        """The step of least SNR."""
        return next(step for step in self.steps if step.step == self.worst_step)


@dataclass(frozen=True)
class CompareResult:
    """Every engine against the reference.

    Attributes:
        schedule: its name.
        reference: the engine of full precision.
        guidance: scale.
        num: samples.
        seed: of their noise.
        precisions: by name.
    """

    schedule: str
    reference: str
    guidance: float
    num: int
    seed: int
    precisions: Mapping[str, PrecisionFigures]
    schema_version: Literal[1] = 1

    def check(self, min_snr_db: float) -> None:
        """Hold every step of every precision against a threshold.

        Raises:
            PtqdError: the worst one is below.
        """
        name, figures = min(self.precisions.items(), key=lambda item: infinite(item[1].worst.snr_db))
        worst = figures.worst
        if infinite(worst.snr_db) < min_snr_db:
            raise PtqdError(
                "An engine is further from full precision than allowed.",
                found=f"{name} at step {worst.step} (timestep {worst.timestep:g}): {worst.snr_db:.2f} dB",
                expected=f"at least {min_snr_db:g} dB at every step",
                mend=f"look for the layer: ptqd-export bisect BUNDLE --precision {name} --step {worst.step}; or compare fewer --precisions",
            )


def infinite(figure: Decibels) -> float:
    return math.inf if figure is None else figure


def finite(figure: float) -> Decibels:
    """JSON has no infinity.

    Raises:
        PtqdError: it is minus infinity.
    """
    if figure == -math.inf:
        raise PtqdError("Full precision's output is zero everywhere.", found="no signal to compare with", mend="compare a trained model")
    return figure if math.isfinite(figure) else None


def _mean(figures: list[Decibels]) -> Decibels:
    return finite(fmean(infinite(figure) for figure in figures))
