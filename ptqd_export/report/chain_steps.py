"""The figures that the page shows for every step: of the chain, and of each precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from calib.correction.correction_fit import Affine
from calib.correction.moments import GUIDED, PLAIN, Moments
from calib.walk.policy import epsilon_norms
from engines.api.layer_info import StoredLayer
from engines.bundle.bundle import DEFAULT, Bundle
from engines.chain.schedule import Correction, Schedule
from engines.errors import BundleError
from engines.samplers import SamplerTable
from ptqd_export.records.statistics_file import read_statistics
from ptqd_export.records.stored_statistics import statistics_file

Series = tuple[float | None, ...]
"""One figure per step; None if the figure is infinite or missing."""


class _Stored(BaseModel):
    """Part of a statistics file that the page reads; the rest of the file is for refits."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


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
    layers: list[StoredLayer]


@dataclass(frozen=True)
class ChainSteps:
    """The steps of the default schedule, the noisiest first. Variances and standard deviations are of the state.

    Attributes:
        timestep: timestep given to the networks.
        precision: precision that the schedule chose.
        network: the precision or, where the step reuses features, its name at the cut.
        threshold_db: `a / (1 - a)` of the paper's rule, in dB.
        sigma: standard deviation of the sampler's fresh noise.
        sigma_corrected: standard deviation of the noise drawn in its place at the chosen precision.
        absorbed: variance added by quantization that the fresh noise absorbs.
        unabsorbed: variance added by quantization that the fresh noise cannot absorb.
    """

    timestep: tuple[float, ...]
    precision: tuple[str, ...]
    network: tuple[str, ...]
    threshold_db: Series
    sigma: tuple[float, ...]
    sigma_corrected: tuple[float, ...]
    absorbed: tuple[float, ...]
    unabsorbed: tuple[float, ...]

    @property
    def reuses(self) -> frozenset[int]:
        """Steps that reuse features."""
        return frozenset(step for step, name in enumerate(self.network) if name != self.precision[step])

    @property
    def draws_noise(self) -> bool:
        return any(self.sigma)


@dataclass(frozen=True)
class PrecisionSteps:
    """One precision at every step of the default schedule, whether the schedule chose it there or not.

    Attributes:
        name: name of the precision.
        snr_db: power of the output over the power of its noise, in dB.
        corrected_snr_db: the same for the corrected output.
        epsilon_snr_db: the same for the corrected output as noise prediction, which the paper's rule compares with its threshold.
        k: slope of the noise on the output.
        r2: share of the noise that `k e` explains.
        bias: root mean square, over channels, of the residual's mean.
        residual_variance: variance of the corrected output around full precision's.
        layers: bits of every layer.
    """

    name: str
    snr_db: Series
    corrected_snr_db: Series
    epsilon_snr_db: Series
    k: Series
    r2: Series
    bias: Series
    residual_variance: Series
    layers: tuple[StoredLayer, ...]


def sampler_table(bundle: Bundle, schedule: Schedule) -> SamplerTable:
    """Return the sampler's coefficients from which a schedule was made."""
    return schedule.sampler.table(bundle.manifest.model.noise_schedule)


def chain_steps(schedule: Schedule, table: SamplerTable) -> ChainSteps:
    """Return the chain of a schedule; its thresholds come from the sampler's table."""
    steps = schedule.steps
    chosen = [step.chosen_correction for step in steps]
    return ChainSteps(
        timestep=tuple(step.corrected.timestep for step in steps),
        precision=tuple(step.precision for step in steps),
        network=tuple(step.network for step in steps),
        threshold_db=tuple(_decibels(alpha, 1 - alpha) for alpha in table.alpha_bar.tolist()),
        sigma=tuple(step.sigma for step in steps),
        sigma_corrected=tuple(correction.sigma_corrected for correction in chosen),
        absorbed=tuple(max(step.sigma**2 - made.sigma_corrected**2, 0.0) for step, made in zip(steps, chosen, strict=True)),
        unabsorbed=tuple(correction.unabsorbed_variance for correction in chosen),
    )


def precision_steps(bundle: Bundle, schedule: Schedule, table: SamplerTable) -> list[PrecisionSteps]:
    """Return every precision that the walk of the default schedule measured, the one with the fewest bit operations first.

    Raises:
        BundleError: the statistics are damaged.
    """
    files = {name: statistics_file(bundle, DEFAULT, name) for name in schedule.precisions}
    found = [_precision_steps(bundle, files[name], name, schedule, table) for name in _in_order(bundle, files)]
    if len({tuple(layer.name for layer in steps.layers) for steps in found}) > 1:
        raise BundleError("Statistics of different precisions list different layers.", mend="rebuild the bundle")
    return found


def steps_at_cut(bundle: Bundle, schedule: Schedule, table: SamplerTable) -> list[PrecisionSteps]:
    """Return every network at the cut of the default schedule, measured at the steps that reuse features.

    Raises:
        BundleError: the statistics are damaged.
    """
    files = {name: statistics_file(bundle, DEFAULT, name) for name in schedule.networks_at_cut}
    return [_precision_steps(bundle, file, name, schedule, table) for name, file in files.items() if file in bundle.manifest.files]


def mean_of(series: Iterable[float | None]) -> float | None:
    """Return the mean of a series; None if the series is empty or has a None."""
    values = list(series)
    finite = [value for value in values if value is not None]
    return fmean(finite) if finite and len(finite) == len(values) else None


def _in_order(bundle: Bundle, files: Mapping[str, str]) -> list[str]:
    return [name for name in bundle.manifest.precisions if files.get(name) in bundle.manifest.files]


def _precision_steps(bundle: Bundle, file: str, name: str, schedule: Schedule, table: SamplerTable) -> PrecisionSteps:
    """Return the figures of a network; None at steps that it can not take."""
    path = bundle.folder / file
    stored = read_statistics(bundle, file, _StatisticsFile)
    taken = [step.step for step in schedule.steps if name in step.corrections]
    if len(stored.steps) != len(taken):
        found, expected = f"{path}: {len(stored.steps)} steps", f"{len(taken)} steps"
        raise BundleError("The statistics belong to another chain.", found=found, expected=expected, mend="rebuild the bundle")
    corrections = [schedule.steps[step].corrections[name] for step in taken]
    moments = [Moments.from_json(record.moments) for record in stored.steps]
    _check_moments(path, moments, corrections)

    def series(values: Iterable[float | None]) -> Series:
        by_step = dict(zip(taken, values, strict=True))
        return tuple(by_step.get(step.step) for step in schedule.steps)

    return PrecisionSteps(
        name=name,
        snr_db=series(record.snr_db for record in stored.steps),
        corrected_snr_db=series(record.corrected_snr_db for record in stored.steps),
        epsilon_snr_db=series(
            _decibels(*epsilon_norms(of_step.guided(stored.guidance), _affine(correction), table.step(i).epsilon_coeffs))
            for i, of_step, correction in zip(taken, moments, corrections, strict=True)
        ),
        k=series(record.k for record in stored.steps),
        r2=series(record.r2 for record in stored.steps),
        bias=series(float(np.sqrt(np.mean(np.square(record.mu)))) for record in stored.steps),
        residual_variance=series(correction.residual_variance for correction in corrections),
        layers=tuple(stored.layers),
    )


def _check_moments(path: Path, moments: Sequence[Moments], corrections: Sequence[Correction]) -> None:
    for step, (of_step, correction) in enumerate(zip(moments, corrections, strict=True)):
        if of_step.variables not in (PLAIN, GUIDED) or of_step.channels != len(correction.gain):
            raise BundleError(
                "The statistics do not fit their schedule.",
                found=f"{path}: step {step}: {of_step.channels} channels of {', '.join(of_step.variables)}",
                expected=f"{len(correction.gain)} channels of {', '.join(PLAIN)} or {', '.join(GUIDED)}",
                mend="rebuild the bundle",
            )


def _affine(correction: Correction) -> Affine:
    return Affine(np.array(correction.gain), np.array(correction.offset), np.array(correction.state_gain))


def _decibels(above: float, below: float) -> float | None:
    """Return a ratio of amplitudes in dB; None if it is infinite."""
    return 20 * math.log10(above / below) if above > 0 and below > 0 else None
