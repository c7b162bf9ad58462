"""The cheapest chain for a PSNR, against every chain there is."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from calib.walk.budget import Menu, cheapest
from calib.walk.cheapest_chain import cheapest_reaching, decibels, predicted_error
from calib.walk.sensitivity import Probes
from engines.errors import UsageError

STEPS, AGES = 4, 2
WHOLE, AT_CUT = ("low", "high"), ("low+cut", "high+cut")


@pytest.fixture
def probes() -> Probes:
    """Two precisions whose errors are independent between steps."""
    amplitudes = np.exp(np.random.default_rng(1).normal(0, 0.3, size=(STEPS, 2))) * np.array([0.1, 0.01])
    products = np.diag(np.square(amplitudes).ravel()).reshape(1, STEPS, 2, STEPS, 2)
    return Probes.of_every_step(WHOLE, products)


@pytest.fixture
def menu(probes: Probes) -> Menu:
    errors = np.exp(np.random.default_rng(2).normal(0, 0.3, size=(STEPS, AGES, 2))) * np.array([0.03, 0.06])[:, None]
    return Menu.of(probes, {"low": 0.4, "high": 0.8}).reusing(AT_CUT, errors, [0.1, 0.2])


def chains() -> list[tuple[str, ...]]:
    """Return every chain whose features are at most `AGES` steps old."""
    every = itertools.product((*WHOLE, *AT_CUT), repeat=STEPS)
    return [one for one in every if one[0] in WHOLE and "+++" not in "".join("+" if name in AT_CUT else "-" for name in one)]


def test_errors_of_whole_steps_add_as_the_probes_say_and_those_of_reuse_as_amplitudes(menu: Menu, probes: Probes) -> None:
    chain = ("high", "low+cut", "high+cut", "low")
    whole = math.hypot(menu.amplitudes[0, 1], menu.amplitudes[3, 0])
    reused = menu.amplitudes[1, 2] + menu.amplitudes[2, 5]
    assert menu.ages[2:6] == (1, 1, 2, 2)
    assert predicted_error(menu, probes, chain) == pytest.approx((whole + reused) ** 2)
    assert decibels(4e-3) == pytest.approx(30)


@pytest.mark.parametrize("bound", [0.06, 0.1, 0.2, 0.4])
def test_no_chain_within_the_bound_is_cheaper(menu: Menu, bound: float) -> None:
    found = cheapest(menu, bound)
    within = [one for one in chains() if menu.bound_of(one) <= bound]
    least = min(map(menu.cost_of, within))
    assert menu.cost_of(found) == pytest.approx(least)
    assert menu.bound_of(found) == pytest.approx(min(menu.bound_of(one) for one in within if menu.cost_of(one) <= least + 1e-9))


@pytest.mark.parametrize("psnr", [10.0, 15.0, 20.0, 25.0, 30.0])
def test_chain_reaches_the_psnr_and_costs_no_more_than_any_whose_bound_does(menu: Menu, probes: Probes, psnr: float) -> None:
    found = cheapest_reaching(menu, probes, psnr)
    assert decibels(predicted_error(menu, probes, found)) >= psnr
    sure = [menu.cost_of(one) for one in chains() if decibels(menu.bound_of(one) ** 2) >= psnr]
    reaching = [menu.cost_of(one) for one in chains() if decibels(predicted_error(menu, probes, one)) >= psnr]
    assert min(reaching) - 1e-9 <= menu.cost_of(found) <= min(sure, default=math.inf) + 1e-9


def test_psnr_beyond_the_best_chain_is_an_error_that_says_what_it_reaches(menu: Menu, probes: Probes) -> None:
    best = decibels(predicted_error(menu, probes, ("high",) * STEPS))
    with pytest.raises(UsageError, match=rf"at most {best:.1f} dB, that of the best chain of low, high"):
        cheapest_reaching(menu, probes, best + 1)
    exact = Menu.of(probes, {"low": 0.4, "fp32": 1.0})
    assert set(cheapest_reaching(exact, probes, 200.0)) == {"fp32"}
