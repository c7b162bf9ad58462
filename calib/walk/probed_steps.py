"""Which steps of a chain are probed, and how the end errors of the others follow from them.

A probe runs the rest of the chain, so probing every step of S takes about `S^2 / 2` evaluations. The probed steps leave S, a little less
than S / 2, than S / 4, ..., 1 steps of the chain to run, less than 2 S together, and are dense near the end, where errors vary most. One
more step, between the second and the third, is measured too, so that the interpolation can be compared with it; afterwards it is a probed
step like the others.

Between probed steps, the sensitivity of the end sample is interpolated: end error per error of the step itself, which the fitted schedule
knows at every step. Its logarithm follows a monotone cubic (PCHIP) through the probed steps: it saturates towards the end of a chain.
The cosine between the end errors of two different steps is interpolated too, linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from engines.arrays import Float64
from engines.chain.schedule import Schedule

MOST_CHAINS = 4
"""Most evaluations of the probes, in chains per quantized precision. A chain whose steps can all be probed for that is not interpolated."""


@dataclass(frozen=True)
class ProbedSteps:
    """The steps to probe.

    Attributes:
        steps: number of steps S of the chain.
        probed: [K] indexes of the probed steps, ascending; the first and the last step are among them.
        held_out: the probed step that the interpolation is checked on; None if every step is probed.
    """

    steps: int
    probed: tuple[int, ...]
    held_out: int | None = None

    @classmethod
    def of(cls, steps: int) -> ProbedSteps:
        """Return the probed steps of a chain with this many steps."""
        if 1 + (steps + 1) / 2 <= MOST_CHAINS:  # the full-precision chain, and half a chain a step
            return cls.every(steps)
        left = [steps]
        while left[-1] > 1:
            left.append(max((left[-1] - 1) // 2, 1))
        wide = [ends for ends in pairwise(left) if ends[0] - ends[1] > 1]
        held_out = steps - round(math.sqrt(math.prod(wide[:2][-1])))
        return cls(steps, tuple(sorted({held_out, *(steps - some for some in left)})), held_out)

    @classmethod
    def every(cls, steps: int) -> ProbedSteps:
        return cls(steps, tuple(range(steps)))

    @property
    def evaluations(self) -> int:
        """Evaluations of the networks for one precision: a probe runs its step and every step after it."""
        return sum(self.steps - step for step in self.probed)

    @cached_property
    def weights(self) -> Float64:
        """Weights of the probed steps in the linear interpolation at each step, [S, K]."""
        return np.stack([np.interp(np.arange(self.steps), self.probed, unit) for unit in np.eye(len(self.probed))], axis=1)

    def curve(self, values: Float64, probed: Sequence[int]) -> Float64:
        """Return the monotone cubic through values [N, len(probed), ...] at some of the probed steps, at every step, [N, S, ...]."""
        if len(probed) == self.steps:
            return values
        from scipy.interpolate import PchipInterpolator  # takes a third of a second to import, and few builds spend a budget

        return np.asarray(PchipInterpolator(probed, values, axis=1)(np.arange(self.steps)))


def own_errors(schedule: Schedule, precisions: Sequence[str]) -> Float64:
    """Return the root mean square difference from full precision that each precision adds to the state at each step itself, [S, P].

    It follows from the schedule: the residual of the corrected output times its coefficient, and the noise that the calibration removes.
    A precision without any difference at some step gets ones at every step, so that its end errors are interpolated as they are.
    """
    squares = np.array([[_own_square(schedule, i, name) for name in precisions] for i in range(len(schedule.steps))])
    return np.where((squares > 0).all(axis=0), np.sqrt(squares), 1.0)


def _own_square(schedule: Schedule, i: int, name: str) -> float:
    step = schedule.steps[i]
    correction = step.corrections[name]
    out_coeff = step.out_coeff + step.prediction_coeffs[1] * sum(step.history_coeffs[:1])
    return out_coeff**2 * correction.residual_variance + (step.sigma - correction.sigma_corrected) ** 2
