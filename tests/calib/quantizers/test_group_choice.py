"""Groups of steps that are worth their engines: the best division of all, by brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest

from calib.quantizers.group_choice import Span, least_noise, spans


def divisions(parts: int) -> list[list[Span]]:
    """All ways to cut a chain."""
    cuts = [cut for count in range(parts) for cut in itertools.combinations(range(1, parts), count)]
    return [[tuple(range(begin, end)) for begin, end in itertools.pairwise((0, *cut, parts))] for cut in cuts]


def random_noise(parts: int, seed: int) -> Mapping[Span, float]:
    """Noise that grows with the length of a span, by chance more or less."""
    generator = np.random.default_rng(seed)
    return {span: float(len(span) ** 1.3 + generator.normal()) for span in spans(parts)}


@pytest.mark.parametrize("worth_db", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_division_has_less_noise_for_its_engines(seed: int, worth_db: float) -> None:
    noise = random_noise(6, seed)
    costs = {tuple(groups): sum(noise[span] + worth_db for span in groups) for groups in divisions(6)}
    chosen = least_noise(6, noise.__getitem__, worth_db)
    assert costs[tuple(chosen)] == pytest.approx(min(costs.values()))


def test_a_chain_is_cut_where_its_activations_change_and_nowhere_else() -> None:
    """Parts of the same range share scales at no cost; a span with both ranges loses 6 dB."""
    ranges = (1.0, 1.0, 0.1, 0.1, 0.1)
    assert least_noise(5, lambda span: 6.0 if len({ranges[part] for part in span}) > 1 else 0.0) == [(0, 1), (2, 3, 4)]


def test_gains_below_the_worth_of_an_engine_leave_one_group() -> None:
    assert least_noise(4, lambda span: 0.2 * (len(span) - 1) / 3) == [(0, 1, 2, 3)]
