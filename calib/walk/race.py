"""A race of chains: they take the same held-out samples, a few at a time, and those that end significantly farther than another drop out.
Towards the end of what a race may cost, only the best go on.

Differences are paired, sample by sample, so that they are known from far fewer samples than the errors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np

from engines.arrays import Float64

MARGIN = 2.0
"""Standard errors of the paired difference by which a contender must be behind another to drop out, of many samples; see `Behind`."""

LEAST = 2
"""Fewest contenders that a further round tells apart."""

_UNKNOWN = 3
"""Up to so many samples, Student's distribution has no finite variance."""

Contender = TypeVar("Contender", bound=Hashable)


@dataclass(frozen=True)
class Behind:
    """How far a contender ended behind another, in the samples that both took.

    Attributes:
        samples: number of these samples.
        mean: mean paired difference, in dB.
        standard_error: standard error of this mean; infinite for one sample.
    """

    samples: int
    mean: float
    standard_error: float

    @classmethod
    def of(cls, errors: Float64, others: Float64) -> Behind:
        """Compare errors [n] with another contender's, [m], in dB; the first min(n, m) samples are common."""
        n = min(len(errors), len(others))
        difference = errors[:n] - others[:n]
        spread = float(difference.std(ddof=1)) if n > 1 else math.inf
        return cls(n, float(difference.mean()), spread / math.sqrt(n))

    @property
    def is_significant(self) -> bool:
        """Whether the mean exceeds `MARGIN` standard errors. Few samples know these errors roughly, so the margin widens by the standard
        deviation of Student's distribution: to 3.5 for four samples, 2.4 for eight. Three tell nothing.
        """
        n = self.samples
        return n > _UNKNOWN and self.mean > MARGIN * math.sqrt((n - 1) / (n - _UNKNOWN)) * self.standard_error


@dataclass(frozen=True, eq=False)
class Race(Generic[Contender]):
    """A finished race.

    Attributes:
        errors: errors in dB of each contender in the samples that it took, [n]; the first samples are common to all.
        left: contenders that did not drop out: the best of them, and all that are not significantly behind any contender and fitted into
            the last round.
    """

    errors: Mapping[Contender, Float64]
    left: Sequence[Contender]

    @cached_property
    def winner(self) -> Contender:
        """The one with the least mean error of those that are left; the first of equals."""
        return min(self.left, key=lambda contender: float(self.errors[contender].mean()))

    def is_beaten(self, contender: Contender) -> bool:
        """Whether a contender ended significantly farther than another."""
        return any(Behind.of(self.errors[contender], others).is_significant for others in self.errors.values())


def race(
    contenders: Sequence[Contender],
    measure: Callable[[Contender, int], Float64],
    rounds: int,
    allowance: float,
    shared: float = 0.0,
    relatives: Callable[[Contender], Iterable[Contender]] = lambda _: (),
) -> Race[Contender]:
    """Race contenders.

    Args:
        contenders: who takes part, at least one.
        measure: returns a contender's errors in dB in the samples of a round.
        rounds: most rounds to run.
        allowance: most calls of `measure`; the first round runs in any case. If a round for all would exceed it, the best take part, as
            many as fit, but at least two.
        shared: what a round costs beside, in calls.
        relatives: returns those who resemble a contender. Of those that have any, the nearest one's join after the first round, which they
            take too.
    """
    errors, left, calls = dict[Contender, Float64](), list(contenders), 0.0
    for number in range(rounds):
        if number:
            fitting = int(allowance - calls - shared)
            if min(len(left), fitting) < LEAST:
                break
            left = _ranked(left, errors)[:fitting]
        for contender in left:
            errors[contender] = np.append(errors.get(contender, ()), measure(contender, number))
        if not number:
            joining = next((found for contender in _ranked(left, errors) if (found := [*relatives(contender)])), [])
            errors.update((contender, measure(contender, number)) for contender in joining)
            left += joining
        calls += len(left) + shared
        so_far = Race(errors, left)
        left = [contender for contender in left if contender == so_far.winner or not so_far.is_beaten(contender)]
    return Race(errors, left)


def _ranked(contenders: Iterable[Contender], errors: Mapping[Contender, Float64]) -> list[Contender]:
    """Return the contenders, the best first, and equals in their order."""
    return sorted(contenders, key=lambda contender: float(errors[contender].mean()))
