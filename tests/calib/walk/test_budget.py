"""The integer program against every chain there is, on problems small enough to list them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calib.walk.budget import Menu, check_budget, choose, frontier
from calib.walk.sensitivity import Probes
from engines.arrays import Float64
from engines.errors import UsageError

STEPS = 6
NAMES = ("low", "middle", "high", "fp32")


def menu(seed: int, precisions: int = 3, spread: float = 3.0) -> Menu:
    """Random amplitudes over orders of magnitude; the fourth precision is exact."""
    rng = np.random.default_rng(seed)
    amplitudes = np.exp(spread * rng.standard_normal((STEPS, precisions))) * 10.0 ** -np.arange(3, 3 + precisions)
    if precisions == 4:
        amplitudes[:, 3] = 0
    return Menu(NAMES[:precisions], amplitudes, np.sort(rng.uniform(0.02, 1.0, precisions)))


def every_chain(found: Menu) -> tuple[Float64, Float64]:
    """Cost and bound of all chains."""
    chains = np.array(list(itertools.product(range(len(found.precisions)), repeat=STEPS)))
    return found.costs[chains].mean(axis=1), found.amplitudes[np.arange(STEPS), chains].sum(axis=1)


def test_cost_and_bound_are_sums_over_the_steps() -> None:
    found = menu(0)
    chain = ("low", "high", "low", "middle", "high", "low")
    columns = [0, 2, 0, 1, 2, 0]
    assert found.bound_of(chain) == pytest.approx(sum(found.amplitudes[i, p] for i, p in enumerate(columns)))
    assert found.cost_of(chain) == pytest.approx(sum(found.costs[p] for p in columns) / STEPS)


@pytest.mark.parametrize("precisions", [3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_no_affordable_chain_has_a_smaller_bound(seed: int, precisions: int) -> None:
    found = menu(seed, precisions)
    costs, bounds = every_chain(found)
    for share in (0.1, 0.5, 0.8):
        budget = float(found.costs[0] + share * (found.costs[-1] - found.costs[0]))
        chosen, best = choose(found, budget), bounds[costs <= budget].min()
        assert found.cost_of(chosen) <= budget * (1 + 1e-9)
        assert found.bound_of(chosen) == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_chain_of_the_same_cost_is_better_whoever_chose_it(seed: int) -> None:
    found, rng = menu(seed, 4), np.random.default_rng(seed)
    for _ in range(5):
        other = tuple(rng.choice(found.precisions, STEPS).tolist())
        assert found.bound_of(choose(found, found.cost_of(other))) <= found.bound_of(other) * (1 + 1e-9)


def test_a_budget_of_one_buys_full_precision() -> None:
    found = Menu(("low", "fp32"), np.tile([0.1, 0.0], (STEPS, 1)), np.array([0.05, 1.0]))
    assert choose(found, 1.0) == ("fp32",) * STEPS


def test_amplitudes_of_any_size_are_compared() -> None:
    tiny = np.tile([1e-3, 1e-40], (STEPS, 1))
    tiny[2, 0] = 1e-2
    found = choose(Menu(("low", "high"), tiny, np.array([0.1, 0.2])), 0.1 + 0.1 / STEPS)
    assert found == ("low", "low", "high", "low", "low", "low")


def test_an_exact_budget_is_affordable() -> None:
    """A third of the cost three times is not one in floating point."""
    found = Menu(("low", "high"), np.tile([1.0, 0.1], (STEPS, 1)), np.array([0.1, 0.7]))
    assert choose(found, found.cost_of(("low",) * 4 + ("high",) * 2)).count("high") == 2


def test_the_amplitude_decides_where_to_spend() -> None:
    amplitudes = np.tile([0.1, 0.01], (STEPS, 1))
    amplitudes[3, 0] = 5.0
    found = Menu(("low", "high"), amplitudes, np.array([1.0, 2.0]))
    assert choose(found, 7 / 6) == ("low", "low", "low", "high", "low", "low")


def test_among_equals_the_cheapest_and_then_the_one_that_saves_early() -> None:
    same = np.ones((STEPS, 2))
    assert choose(Menu(("low", "high"), same, np.array([0.1, 0.2])), 0.2) == ("low",) * STEPS
    equal_steps = np.tile([2.0, 1.0], (STEPS, 1))
    found = choose(Menu(("low", "high"), equal_steps, np.array([0.1, 0.2])), 0.1 + 0.1 * 2 / STEPS)
    assert found == ("low",) * 4 + ("high",) * 2


def test_a_budget_below_the_cheapest_chain_is_an_error_that_names_it() -> None:
    found = Menu(("w2a8", "w8a8"), np.ones((STEPS, 2)), np.array([0.02, 0.0673]))
    with pytest.raises(UsageError, match=r"0\.02, the cost of w2a8 at every step") as caught:
        choose(found, 0.019)
    assert "budget 0.019" in str(caught.value)
    with pytest.raises(UsageError, match="the cost of w2a8"):
        check_budget({"w8a8": 0.0673, "w2a8": 0.02}, 0.019)
    assert choose(found, 0.02) == ("w2a8",) * STEPS


def test_the_frontier_goes_from_the_cheapest_chain_to_the_dearest_and_gets_better() -> None:
    found = menu(1, 4)
    chains = frontier(found, 12)
    costs, bounds = ([of(chain) for chain in chains] for of in (found.cost_of, found.bound_of))
    assert chains[0] == ("low",) * STEPS
    assert chains[-1] == ("fp32",) * STEPS
    assert len(chains) == len(set(chains)) > 6
    assert costs == sorted(costs)
    assert bounds == sorted(bounds, reverse=True)


def test_precisions_that_were_not_probed_are_exact() -> None:
    errors = np.random.default_rng(0).standard_normal((3, STEPS, 2, 8))
    products = np.einsum("nipv,njqv->nipjq", errors, errors) / 8
    found = Menu.of(Probes.of_every_step(("low", "high"), products), {"high": 0.2, "low": 0.1, "fp32": 1.0})
    assert found.precisions == ("high", "low", "fp32")
    np.testing.assert_allclose(found.costs, [0.2, 0.1, 1.0])
    own = np.exp(np.log(np.square(errors).mean(axis=-1)).mean(axis=0) / 2)
    np.testing.assert_allclose(found.amplitudes, np.stack([own[:, 1], own[:, 0], np.zeros(STEPS)], axis=1))


AGES = 2
AT_CUT = ("low+cut", "middle+cut")


def aged(seed: int) -> Menu:
    """Two precisions, and their networks at a cut, whose errors grow with the age of the features."""
    rng = np.random.default_rng(seed)
    plain = Menu(NAMES[:2], np.exp(rng.standard_normal((STEPS, 2))), np.array([0.5, 1.0]))
    errors = np.exp(rng.standard_normal((STEPS, AGES, 2))) * np.array([1.0, 3.0])[:, None]
    return plain.reusing(AT_CUT, errors, [0.1, 0.2])


def aged_chains(found: Menu) -> list[tuple[tuple[str, ...], float, float]]:
    """Every chain whose features are at most `AGES` steps old, with its cost and bound, summed by hand."""
    chains = []
    for chain in itertools.product((*NAMES[:2], *AT_CUT), repeat=STEPS):
        age, cost, bound = AGES, 0.0, 0.0
        for i, name in enumerate(chain):
            age = 0 if name in NAMES else age + 1
            if age > AGES:
                break
            column = NAMES.index(name) if age == 0 else 2 + (age - 1) * len(AT_CUT) + AT_CUT.index(name)
            cost, bound = cost + found.costs[column] / STEPS, bound + found.amplitudes[i, column]
        else:
            chains.append((chain, cost, bound))
    return chains


@pytest.mark.parametrize("seed", range(3))
def test_no_affordable_chain_that_reuses_features_has_a_smaller_bound(seed: int) -> None:
    found = aged(seed)
    chains = aged_chains(found)
    for budget in (0.25, 0.4, 0.7):
        chosen, best = choose(found, budget), min(bound for _, cost, bound in chains if cost <= budget)
        ((cost, bound),) = ((cost, bound) for chain, cost, bound in chains if chain == chosen)
        assert cost <= budget * (1 + 1e-9)
        assert bound == pytest.approx(best, rel=1e-6)
        assert (found.cost_of(chosen), found.bound_of(chosen)) == pytest.approx((cost, bound))


def test_budget_below_every_chain_that_keeps_features_is_refused() -> None:
    found = aged(0)
    cheapest = min(cost for _, cost, _ in aged_chains(found))
    assert cheapest > 0.1  # a network at the cut alone would cost less
    with pytest.raises(UsageError, match=rf"at least {cheapest:.4g}, the cost of the cheapest chain"):
        choose(found, 0.9 * cheapest)
