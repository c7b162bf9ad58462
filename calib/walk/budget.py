"""Chooses the network of each step for the least error within a budget, or at the least cost within an error, by an integer program.

The errors of neighbouring steps point in similar directions, so along a chain their amplitudes add up rather than their squares. By the
triangle inequality, the sum of the amplitudes bounds the amplitude of the end error. This bound is linear in the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """The precisions to choose from, with their errors and costs. A network that reuses features has a column for every age of them.

    Attributes:
        precisions: [P] names.
        amplitudes: [S, P] root mean square error of the end sample for each precision at each step.
        costs: [P] cost of a step relative to a full-precision step.
        ages: [P] number of steps since the features were computed, 0 for a network that computes them; empty if all do.
    """

    precisions: tuple[str, ...]
    amplitudes: Float64
    costs: Float64
    ages: tuple[int, ...] = ()

    @property
    def whole(self) -> tuple[str, ...]:
        """Names of the networks that compute everything."""
        return self.precisions[: self.ages.index(1)] if self.ages else self.precisions

    @classmethod
    def of(cls, probes: Probes, costs: Mapping[str, float]) -> Menu:
        """Build the menu of the precisions in `costs`. A precision that was not probed counts as exact."""
        exact = np.zeros(probes.steps)
        amplitudes = dict(zip(probes.precisions, probes.amplitudes.T, strict=True))
        return cls(tuple(costs), np.stack([amplitudes.get(name, exact) for name in costs], axis=1), np.array(list(costs.values())))

    def reusing(self, networks: Sequence[str], amplitudes: Float64, costs: Sequence[float]) -> Menu:
        """Return the menu with networks that reuse features besides.

        Args:
            networks: [Q] names.
            amplitudes: [S, A, Q] error of the end sample for each step, age 1 to A of the features, and network.
            costs: [Q] cost of a step.
        """
        S, A, Q = amplitudes.shape
        return Menu(
            (*self.precisions, *(name for _ in range(A) for name in networks)),
            np.concatenate([self.amplitudes, amplitudes.reshape(S, A * Q)], axis=1),
            np.concatenate([self.costs, np.tile(np.array(costs), A)]),
            (*(0 for _ in self.precisions), *(age for age in range(1, A + 1) for _ in networks)),
        )

    def only(self, networks: Iterable[str]) -> Menu:
        """Return the menu of some of the networks, among them one that computes everything."""
        wanted = {*networks}
        kept = [p for p, name in enumerate(self.precisions) if name in wanted]
        ages = tuple(self.ages[p] for p in kept) if self.ages else ()
        names = tuple(self.precisions[p] for p in kept)
        return Menu(names, self.amplitudes[:, kept], self.costs[kept], ages if any(ages) else ())

    def cost_of(self, choice: Sequence[str]) -> float:
        """Return the cost of a chain relative to the full-precision chain."""
        return float(np.mean(self.costs[self._columns(choice)]))

    def bound_of(self, choice: Sequence[str]) -> float:
        """Return the sum of the steps' amplitudes, which the program minimises."""
        return float(self.amplitudes[np.arange(len(choice)), self._columns(choice)].sum())

    def reused_bound_of(self, choice: Sequence[str]) -> float:
        """Return the part of the bound that the steps add that reuse features."""
        columns = [column if self.ages and self.ages[column] else None for column in self._columns(choice)]
        return float(sum(self.amplitudes[i, column] for i, column in enumerate(columns) if column is not None))

    def _columns(self, choice: Sequence[str]) -> list[int]:
        if not self.ages:
            return [self.precisions.index(name) for name in choice]
        columns, age = list[int](), 0
        for name in choice:
            age = 0 if name in self.whole else age + 1
            columns.append(next(p for p, of in enumerate(zip(self.precisions, self.ages, strict=True)) if of == (name, age)))
        return columns


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
    Among equals it takes the cheapest chain, and among those the chain that saves at the noisier steps. Features of age `a` at a step are
    those of age `a - 1` at the step before: `sum_{p of age a} z[i, p] <= sum_{p of age a - 1} z[i - 1, p]`.

    Raises:
        UsageError: every chain costs more than the budget.
    """
    S = len(menu.amplitudes)
    _check_affordable(menu, budget)
    errors = menu.amplitudes / _unit(menu.amplitudes)
    costs = np.tile(menu.costs / menu.costs.min(), (S, 1))
    affordable = costs, S * budget / menu.costs.min()
    least = _solve(errors, [affordable], menu.ages)
    equals = errors, float(errors[np.arange(S), least].sum())
    best = _solve(costs * (1 - _ORDER * np.arange(S)[:, None]), [affordable, equals], menu.ages)
    return _names(menu, best)


def cheapest(menu: Menu, bound: float) -> tuple[str, ...]:
    """Return the cheapest chain whose bound is at most `bound`, which some chain keeps: the one with the least bound among equals."""
    S = len(menu.amplitudes)
    unit = _unit(menu.amplitudes)
    errors, costs = menu.amplitudes / unit, np.tile(menu.costs / menu.costs.min(), (S, 1))
    within = errors, bound / unit
    least = _solve(costs, [within], menu.ages)
    best = _solve(errors, [within, (costs, float(costs[np.arange(S), least].sum()))], menu.ages)
    return _names(menu, best)


def _check_affordable(menu: Menu, budget: float) -> None:
    if not menu.ages:
        check_budget(dict(zip(menu.precisions, menu.costs.tolist(), strict=True)), budget)
        return
    cost = _least_cost(menu)
    if budget < cost * (1 - _ROUNDING):
        raise UsageError(
            "Every chain costs more than the budget.",
            found=f"budget {budget:g}",
            expected=f"at least {cost:.4g}, the cost of the cheapest chain",
            mend="raise the budget, or add a precision that costs less",
        )


def _least_cost(menu: Menu) -> float:
    """Return the cost of the cheapest chain."""
    chain = _solve(np.tile(menu.costs, (len(menu.amplitudes), 1)), [], menu.ages)
    return float(menu.costs[chain].mean())


def frontier(menu: Menu, points: int) -> list[tuple[str, ...]]:
    """Return the distinct chains chosen at `points` budgets, logarithmically spaced from the cheapest to the most expensive chain."""
    budgets = np.geomspace(_least_cost(menu), menu.costs.max(), points)
    return list(dict.fromkeys(choose(menu, float(budget)) for budget in budgets))


def _names(menu: Menu, columns: Sequence[int]) -> tuple[str, ...]:
    return tuple(menu.precisions[p] for p in columns)


def _unit(amplitudes: Float64) -> float:
    """The smallest amplitude that matters, used as unit: HiGHS stops at an absolute gap of 1e-6 and treats 1e20 as infinite."""
    positive = amplitudes[amplitudes > 0]
    return max(float(positive.min()), _ROUNDING * float(positive.max())) if positive.size else 1.0


def _solve(objective: Float64, limits: Sequence[tuple[Float64, float]], ages: Sequence[int] = ()) -> list[int]:
    """Return the column of each step, [S], that minimises the sum of `objective` [S, P] while other sums of [S, P] keep their limits, and
    features grow older by a step at each step that reuses them.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes a third of a second to import, and few builds spend a budget

    S, P = objective.shape
    one_per_step = LinearConstraint(np.kron(np.eye(S), np.ones(P)), 1, 1)
    within = [LinearConstraint(values.ravel(), -np.inf, limit * (1 + _ROUNDING)) for values, limit in limits]
    result = milp(
        objective.ravel(),
        integrality=np.ones(S * P, dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[one_per_step, *within, *(LinearConstraint(row, -np.inf, 0) for row in _aging(S, ages))],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise RuntimeError(f"The solver found no solution of an integer program that has one: {result.message}")
    chosen: list[int] = result.x.reshape(S, P).argmax(axis=1).tolist()
    return chosen


def _aging(steps: int, ages: Sequence[int]) -> Iterator[Float64]:
    """Yield rows [S P] whose sum with the choice must not be positive."""
    of_age = np.array(ages, dtype=np.int64)
    for i in range(steps):
        for age in range(1, int(of_age.max(initial=0)) + 1):
            row = np.zeros((steps, len(of_age)))
            row[i, of_age == age] = 1
            if i:
                row[i - 1, of_age == age - 1] = -1
            yield row.ravel()
