"""The result of a comparison. Its fields are those of the JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from engines.bundle.image_size import ImageSize
from engines.errors import PtqdError

Decibels = float | None
"""None means infinity: the outputs are equal."""


@dataclass(frozen=True)
class StepFigures:
    """Figures of one engine at one step, over all samples.

    Attributes:
        step: step of the schedule; 0 is the noisiest.
        timestep: timestep that the networks were given.
        chosen: whether the schedule uses this precision at this step.
        snr_db: SNR of the raw output after guidance, in dB.
        cosine_similarity: cosine similarity of the raw output after guidance.
        psnr_db: PSNR of the raw output after guidance, in dB.
        max_absolute_error: largest error of the raw output after guidance.
        corrected_snr_db: SNR in dB of the output with the schedule's gain and offset.
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
    """Figures of one engine at every step that was compared."""

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
    def correction_db(self) -> float:
        """How much the corrections add to the mean SNR, in dB; 0 if both are infinite."""
        raw, corrected = infinite(self.mean_snr_db), infinite(self.mean_corrected_snr_db)
        return 0.0 if raw == corrected else corrected - raw

    @property
    def worst(self) -> StepFigures:
        """Step with the lowest SNR."""
        return next(step for step in self.steps if step.step == self.worst_step)


@dataclass(frozen=True)
class CompareResult:
    """Comparison of every engine with the reference.

    Attributes:
        schedule: name of the schedule.
        reference: label of the full-precision engine.
        guidance: guidance scale.
        num: number of samples.
        seed: seed of the noise.
        precisions: figures by precision.
        loras: LoRAs in the weights of all networks, with their scales.
        ignored: what the LoRAs would change besides, in words for people.
        without_lora: the same comparison without LoRAs; None if there are none.
        size: height and width of the images in pixels that was asked for; None is the bundle's first.
    """

    schedule: str
    reference: str
    guidance: float
    num: int
    seed: int
    precisions: Mapping[str, PrecisionFigures]
    schema_version: Literal[1] = 1
    loras: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    without_lora: CompareResult | None = None
    size: ImageSize | None = None

    def check(self, min_snr_db: float) -> None:
        """Check the SNR of every precision at every step against a threshold.

        Raises:
            PtqdError: the lowest SNR is below the threshold.
        """
        name, figures = min(self.precisions.items(), key=lambda item: infinite(item[1].worst.snr_db))
        worst = figures.worst
        if infinite(worst.snr_db) < min_snr_db:
            raise PtqdError(
                "An engine is further from full precision than allowed.",
                found=f"{name} at step {worst.step} (timestep {worst.timestep:g}): {worst.snr_db:.2f} dB",
                expected=f"at least {min_snr_db:g} dB at every step",
                mend=f"find the layer: ptqd-export bisect BUNDLE --precision {name} --step {worst.step}; or compare fewer --precisions",
            )


def infinite(figure: Decibels) -> float:
    return math.inf if figure is None else figure


def finite(figure: float) -> Decibels:
    """Return None for infinity, which JSON lacks.

    Raises:
        PtqdError: the figure is minus infinity.
    """
    if figure == -math.inf:
        raise PtqdError("Full precision's output is zero everywhere.", found="no signal to compare with", mend="compare a trained model")
    return figure if math.isfinite(figure) else None


def _mean(figures: list[Decibels]) -> Decibels:
    return finite(fmean(infinite(figure) for figure in figures))
