"""What the page shows of every step: of the chain, and of each precision in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from calib.correction.correction_fit import Affine
from calib.correction.moments import GUIDED, PLAIN, Moments
from calib.walk.policy import epsilon_norms
from engines.bundle.bundle import DEFAULT, Bundle
from engines.chain.schedule import Correction, Schedule
from engines.errors import BundleError
from engines.samplers import SamplerTable, compile_sampler
from ptqd_export.records.statistics_file import read_statistics
from ptqd_export.records.stored_statistics import statistics_file

Series = tuple[float | None, ...]
"""A figure of every step; None where it is infinite or there is none."""


class _Stored(BaseModel):
    """What is read of a statistics file; the rest of it is for refits."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class LayerRecord(_Stored):
    """What a layer got: bits, None for float, and why they are not the plan's."""

    name: str
    op: str
    role: str
    weight_bits: PositiveInt | None
    activation_bits: PositiveInt | None
    reason: str | None


class _StepRecord(_Stored):
    k: float
    mu: Annotated[list[float], Field(min_length=1)]
    r2: float
    snr_db: float | None
    corrected_snr_db: float | None
    moments: dict[str, Any]


class _StatisticsFile(_Stored):
    guidance: float
    steps: list[_StepRecord]
    layers: list[LayerRecord]


@dataclass(frozen=True)
class ChainSteps:
    """The steps of the default schedule, the noisiest first; variances and deviations are of the state.

    Attributes:
        timestep: given to the networks.
        precision: the schedule's choice.
        threshold_db: `a / (1 - a)` of the paper's rule in dB.
        sigma: of the fresh noise, as the sampler has it.
        sigma_corrected: the one in its place, of the chosen precision.
        absorbed: variance that the fresh noise gave up for what quantization added.
        unabsorbed: variance that it could not give up.
    """

    timestep: tuple[float, ...]
    precision: tuple[str, ...]
    threshold_db: Series
    sigma: tuple[float, ...]
    sigma_corrected: tuple[float, ...]
    absorbed: tuple[float, ...]
    unabsorbed: tuple[float, ...]

    @property
    def draws_noise(self) -> bool:
        return any(self.sigma)


@dataclass(frozen=True)
class PrecisionSteps:
    """One precision at every step of the default schedule, chosen there or not.

    Attributes:
        name: of the precision.
        snr_db: power of the output over that of the noise on it.
        corrected_snr_db: the same of the corrected output.
        epsilon_snr_db: the same of the corrected output as noise prediction, which the paper's rule holds against its threshold.
        k: slope of the noise on the output.
        r2: share of the noise that `k e` explains.
        bias: root of the mean square over channels of the residual's mean.
        residual_variance: of the corrected output about full precision's.
        layers: what every layer got.
    """

    name: str
    snr_db: Series
    corrected_snr_db: Series
    epsilon_snr_db: Series
    k: Series
    r2: Series
    bias: Series
    residual_variance: Series
    layers: tuple[LayerRecord, ...]


def sampler_table(bundle: Bundle, schedule: Schedule) -> SamplerTable:
    """The coefficients that a schedule was made from."""
    sampler = schedule.sampler
    return compile_sampler(sampler.name, sampler.steps, sampler.eta, bundle.manifest.model.noise_schedule)


def chain_steps(schedule: Schedule, table: SamplerTable) -> ChainSteps:
    """The chain as the schedule has it; thresholds are of the sampler's table."""
    steps = schedule.steps
    chosen = [step.corrections[step.precision] for step in steps]
    return ChainSteps(
        timestep=tuple(step.corrected.timestep for step in steps),
        precision=tuple(step.precision for step in steps),
        threshold_db=tuple(_decibels(alpha, 1 - alpha) for alpha in table.alpha_bar.tolist()),
        sigma=tuple(step.sigma for step in steps),
        sigma_corrected=tuple(correction.sigma_corrected for correction in chosen),
        absorbed=tuple(max(step.sigma**2 - made.sigma_corrected**2, 0.0) for step, made in zip(steps, chosen, strict=True)),
        unabsorbed=tuple(correction.unabsorbed_variance for correction in chosen),
    )


def precision_steps(bundle: Bundle, schedule: Schedule, table: SamplerTable) -> list[PrecisionSteps]:
    """Every precision that the walk of the default schedule has measured, the fewest bit operations first.

    Raises:
        BundleError: statistics are damaged.
    """
    files = {name: statistics_file(bundle, DEFAULT, name) for name in schedule.precisions}
    found = [_precision_steps(bundle, files[name], name, schedule, table) for name in _in_order(bundle, files)]
    if len({tuple(layer.name for layer in steps.layers) for steps in found}) > 1:
        raise BundleError("Statistics of different precisions list different layers.", mend="rebuild the bundle")
    return found


def mean_of(series: Iterable[float | None]) -> float | None:
    """The mean of a figure that is finite everywhere; None where it is not, or where there is none."""
    values = list(series)
    finite = [value for value in values if value is not None]
    return fmean(finite) if finite and len(finite) == len(values) else None


def _in_order(bundle: Bundle, files: Mapping[str, str]) -> list[str]:
    return [name for name in bundle.manifest.precisions if files.get(name) in bundle.manifest.files]


def _precision_steps(bundle: Bundle, file: str, name: str, schedule: Schedule, table: SamplerTable) -> PrecisionSteps:
    path = bundle.folder / file
    stored = read_statistics(bundle, file, _StatisticsFile)
    if len(stored.steps) != len(schedule.steps):
        found, expected = f"{path}: {len(stored.steps)} steps", f"{len(schedule.steps)} steps"
        raise BundleError("Statistics are of another chain.", found=found, expected=expected, mend="rebuild the bundle")
    corrections = [step.corrections[name] for step in schedule.steps]
    moments = [Moments.from_json(record.moments) for record in stored.steps]
    _check_moments(path, moments, corrections)
    fitted = zip(range(table.steps), moments, corrections, strict=True)
    return PrecisionSteps(
        name=name,
        snr_db=tuple(record.snr_db for record in stored.steps),
        corrected_snr_db=tuple(record.corrected_snr_db for record in stored.steps),
        epsilon_snr_db=tuple(
            _decibels(*epsilon_norms(of_step.guided(stored.guidance), _affine(correction), table.step(i).epsilon_coeffs))
            for i, of_step, correction in fitted
        ),
        k=tuple(record.k for record in stored.steps),
        r2=tuple(record.r2 for record in stored.steps),
        bias=tuple(float(np.sqrt(np.mean(np.square(record.mu)))) for record in stored.steps),
        residual_variance=tuple(correction.residual_variance for correction in corrections),
        layers=tuple(stored.layers),
    )


def _check_moments(path: Path, moments: Sequence[Moments], corrections: Sequence[Correction]) -> None:
    for step, (of_step, correction) in enumerate(zip(moments, corrections, strict=True)):
        if of_step.variables not in (PLAIN, GUIDED) or of_step.channels != len(correction.gain):
            raise BundleError(
                "Statistics do not fit their schedule.",
                found=f"{path}: step {step}: {of_step.channels} channels of {', '.join(of_step.variables)}",
                expected=f"{len(correction.gain)} channels of {', '.join(PLAIN)} or {', '.join(GUIDED)}",
                mend="rebuild the bundle",
            )


def _affine(correction: Correction) -> Affine:
    return Affine(np.array(correction.gain), np.array(correction.offset), np.array(correction.state_gain))


def _decibels(above: float, below: float) -> float | None:
    """A ratio of amplitudes; None where it is infinite."""
    return 20 * math.log10(above / below) if above > 0 and below > 0 else None
