"""Chooses the precision of each step for the least error within a budget, by an integer program.

The errors of neighbouring steps point in similar directions, so along a chain their amplitudes add up rather than their squares. By the
triangle inequality, the sum of the amplitudes bounds the amplitude of the end error. This bound is linear in the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calib.walk.sensitivity import Probes
from engines.arrays import Float64
from engines.errors import UsageError

_ROUNDING = 1e-9
"""Relative slack of a limit, for sums that are equal in exact arithmetic."""

_ORDER = 1e-6
"""Relative discount on the cost of a step for each step before it: just enough to decide between equals."""


@dataclass(frozen=True, eq=False)
class Menu:
    """The precisions to choose from, with their errors and costs.

    Attributes:
        precisions: [P] names.
        amplitudes: [S, P] root mean square error of the end sample for each precision at each step.
        costs: [P] cost of a step relative to a full-precision step.
    """

    precisions: tuple[str, ...]
    amplitudes: Float64
    costs: Float64

    @classmethod
    def of(cls, probes: Probes, costs: Mapping[str, float]) -> Menu:
        """Build the menu of the precisions in `costs`. A precision that was not probed counts as exact."""
        exact = np.zeros(probes.steps)
        amplitudes = dict(zip(probes.precisions, probes.amplitudes.T, strict=True))
        return cls(tuple(costs), np.stack([amplitudes.get(name, exact) for name in costs], axis=1), np.array(list(costs.values())))

    def cost_of(self, choice: Sequence[str]) -> float:
        """Return the cost of a chain relative to the full-precision chain."""
        return float(np.mean(self.costs[self._columns(choice)]))

    def bound_of(self, choice: Sequence[str]) -> float:
        """Return the sum of the steps' amplitudes, which the program minimises."""
        return float(self.amplitudes[np.arange(len(choice)), self._columns(choice)].sum())

    def _columns(self, choice: Sequence[str]) -> list[int]:
        return [self.precisions.index(name) for name in choice]


def check_budget(costs: Mapping[str, float], budget: float) -> None:
    """Check that some chain fits the budget, given the cost of a step by precision as in `Menu`.

    Raises:
        UsageError: every chain costs more than the budget.
    """
    name = min(costs, key=costs.__getitem__)
    if budget < costs[name] * (1 - _ROUNDING):
        raise UsageError(
            "Every chain costs more than the budget.",
            found=f"budget {budget:g}",
            expected=f"at least {costs[name]:.4g}, the cost of {name} at every step",
            mend="raise the budget, or add a precision that costs less",
        )


def choose(menu: Menu, budget: float) -> tuple[str, ...]:
    """Return the chain with the least bound whose cost is at most `budget`.

    With `z[i, p]` in {0, 1} and `sum_p z[i, p] = 1`: minimise `sum amplitude[i, p] z[i, p]` subject to `sum cost[p] z[i, p] <= S budget`.
    Among equals it takes the cheapest chain, and among those the chain that saves at the noisier steps.

    Raises:
        UsageError: every chain costs more than the budget.
    """
    check_budget(dict(zip(menu.precisions, menu.costs.tolist(), strict=True)), budget)
    S = len(menu.amplitudes)
    errors = menu.amplitudes / _unit(menu.amplitudes)
    costs = np.tile(menu.costs / menu.costs.min(), (S, 1))
    affordable = costs, S * budget / menu.costs.min()
    least = _solve(errors, [affordable])
    equals = errors, float(errors[np.arange(S), least].sum())
    best = _solve(costs * (1 - _ORDER * np.arange(S)[:, None]), [affordable, equals])
    return tuple(menu.precisions[p] for p in best)


def frontier(menu: Menu, points: int) -> list[tuple[str, ...]]:
    """Return the distinct chains chosen at `points` budgets, logarithmically spaced from the cheapest to the most expensive chain."""
    budgets = np.geomspace(menu.costs.min(), menu.costs.max(), points)
    return list(dict.fromkeys(choose(menu, float(budget)) for budget in budgets))


def _unit(amplitudes: Float64) -> float:
    """The smallest amplitude that matters, used as unit: HiGHS stops at an absolute gap of 1e-6 and treats 1e20 as infinite."""
    positive = amplitudes[amplitudes > 0]
    return max(float(positive.min()), _ROUNDING * float(positive.max())) if positive.size else 1.0


def _solve(objective: Float64, limits: Sequence[tuple[Float64, float]]) -> list[int]:
    """Return the column of each step, [S], that minimises the sum of `objective` [S, P] while other sums of [S, P] keep their limits."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a third of a second to import, and few builds spend a budget

    S, P = objective.shape
    one_per_step = LinearConstraint(np.kron(np.eye(S), np.ones(P)), 1, 1)
    within = [LinearConstraint(values.ravel(), -np.inf, limit * (1 + _ROUNDING)) for values, limit in limits]
    result = milp(
        objective.ravel(),
        integrality=np.ones(S * P, dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[one_per_step, *within],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"The solver found no solution of an integer program that has one: {result.message}")
    chosen: list[int] = result.x.reshape(S, P).argmax(axis=1).tolist()
    return chosen
