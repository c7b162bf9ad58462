"""Policies choose the precision of a step from what was fitted at the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from calib.correction.correction_fit import Affine, residual_mean, residual_variance
from calib.correction.moments import Moments
from engines.samplers.table import TableStep


@dataclass(frozen=True)
class FittedStep:
    """Inputs of a policy at one step.

    Attributes:
        step: index of the step in the walk; 0 is the noisiest.
        coefficients: coefficients of the step.
        moments: moments of `x, e, d` after guidance, by precision.
        affines: fitted correction, by precision.
    """

    step: int
    coefficients: TableStep
    moments: Mapping[str, Moments]
    affines: Mapping[str, Affine]


Policy: TypeAlias = Callable[[FittedStep], str]


@dataclass(frozen=True)
class SnrPolicy:
    """The rule of the PTQD paper; see `choose_snr`.

    Attributes:
        candidates: precisions, from the fewest bit operations to the most.
    """

    candidates: tuple[str, ...]

    def __call__(self, fitted: FittedStep) -> str:
        row = fitted.coefficients
        return choose_snr(self.candidates, row.alpha_bar, row.epsilon_coeffs, fitted.moments, fitted.affines)


@dataclass(frozen=True)
class FixedPolicy:
    """A fixed list with one precision per step."""

    precisions: tuple[str, ...]

    def __call__(self, fitted: FittedStep) -> str:
        return self.precisions[fitted.step]


def choose_snr(
    candidates: Sequence[str],
    alpha_bar: float,
    epsilon_coeffs: tuple[float, float],
    moments: Mapping[str, Moments],
    affines: Mapping[str, Affine],
) -> str:
    """Return the first candidate with `||eps|| / ||eps' - eps|| > a / (1 - a)`, or the last (PTQD, arXiv 2305.10657, section 3.4).

    The norms are over all samples, pixels and channels. `eps = R x + T e` and `eps' - eps = T (e' - e)` for any prediction type.
    """
    for name in candidates:
        signal, noise = epsilon_norms(moments[name], affines[name], epsilon_coeffs)
        if signal * (1 - alpha_bar) > noise * alpha_bar:
            return name
    return candidates[-1]


def epsilon_norms(moments: Moments, affine: Affine, epsilon_coeffs: tuple[float, float]) -> tuple[float, float]:
    """Return `||eps||` and `||eps' - eps||` as root mean squares, from the moments of `x, e, d`."""
    R, T = epsilon_coeffs
    epsilon = moments.project(np.array([[R, T, 0.0]]), ("epsilon",))
    signal = np.sqrt(np.mean(epsilon.variance("epsilon") + epsilon.mean_of("epsilon") ** 2))
    noise = residual_variance(moments, affine) + float(np.mean(residual_mean(moments, affine) ** 2))
    return float(signal), float(abs(T) * np.sqrt(noise))
