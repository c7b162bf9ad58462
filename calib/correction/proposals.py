"""The corrections that `auto` chooses among."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from calib.correction.correction_fit import BOTH_PARTS, Mode, Part
from calib.correction.step_fit import CorrectionChoice, Variance

AUTO: Literal["auto"] = "auto"
"""Chooses the correction whose chain ends nearest to full precision's; see `calib.walk.end_choice`."""

AnyMode: TypeAlias = Mode | Literal["auto"]

LEADER: Mode = "joint"
"""Mode of the correction that the walk itself takes under `auto`. The proposals are fitted on the states that it visits."""

_MODES: tuple[Mode, ...] = ("none", "ptqd", "signed", "bounded", "joint")
_OFFSET: frozenset[Part] = frozenset(("offset",))
_CHAIN: frozenset[Part] = frozenset(("chain",))


def taken_by_walk(mode: AnyMode, variance: Variance, parts: frozenset[Part], *, can_accumulate: bool) -> CorrectionChoice:
    """Return the correction that the walk takes its steps with. Under `auto` it has the part `chain`, if the chain can have it."""
    if mode != AUTO:
        return CorrectionChoice(mode, variance, parts)
    return CorrectionChoice(LEADER, variance, parts | _CHAIN if can_accumulate else parts)


def proposals_of(mode: AnyMode, variance: Variance, parts: frozenset[Part], *, can_accumulate: bool) -> tuple[CorrectionChoice, ...]:
    """Return the corrections to choose among; empty for a mode other than `auto`.

    With the variance schedule come the same corrections without it: the full excess can cost more than it mends. A walk with shifts visits
    states that hold for shifted steps alone, so there every proposal is shifted. The part `chain` belongs to the walk's own correction.
    """
    if mode != AUTO:
        return ()
    kinds: tuple[Variance, ...] = (variance,) if variance in ("none", "shift") else ("none", variance)
    fits = [CorrectionChoice(name, variance, parts - _CHAIN) for name in _MODES]
    if parts - _CHAIN == BOTH_PARTS:
        fits.append(CorrectionChoice("signed", variance, _OFFSET))
    walked = taken_by_walk(mode, variance, parts, can_accumulate=can_accumulate)
    return tuple(dict.fromkeys([*(replace(fit, variance=kind) for fit in fits for kind in kinds), walked]))
