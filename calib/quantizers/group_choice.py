"""Chooses groups of steps by the noise that is measured with scales of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, ...]
"""Numbers of neighbouring parts of a chain, in ascending order."""

WORTH_DB = 0.25
"""Mean SNR over the steps of a chain that one more group must bring. It costs an engine, and its memory, whatever it brings."""


def least_noise(parts: int, noise_db: Callable[[Span], float], worth_db: float = WORTH_DB) -> list[Span]:
    """Divide a chain into the groups with the least noise, where every group more than one must be worth its engine.

    Args:
        parts: number of parts that the chain consists of; a group is one part or several neighbours.
        noise_db: noise over signal in dB in the parts of a span that shares one set of scales, times the share of the chain's steps that
            lie in the span. Called once for each of the parts * (parts + 1) / 2 spans.
        worth_db: least noise, in the same unit, that a group must take away.

    Returns:
        the groups, in order. By dynamic programming over the number of parts that are already in groups, so no division is better.
    """
    best: list[tuple[float, Sequence[Span]]] = [(0.0, ())]
    for end in range(1, parts + 1):
        costs = []
        for begin in range(end):
            span = tuple(range(begin, end))
            costs.append((best[begin][0] + noise_db(span) + worth_db, (*best[begin][1], span)))
        best.append(min(costs, key=lambda cost: cost[0]))
    return list(best[parts][1])


def spans(parts: int) -> list[Span]:
    """Return all spans that `least_noise` asks for."""
    return [tuple(range(begin, end)) for end in range(1, parts + 1) for begin in range(end)]
