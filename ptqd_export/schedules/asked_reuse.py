"""Reads which steps of an added schedule reuse features."""

from __future__ import annotations

import re
from collections.abc import Sequence

from calib.walk.reuse import ReuseSteps
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Schedule
from engines.errors import UnknownNameError, UsageError
from engines.samplers import SamplerTable

NONE, AUTO = "none", "auto"
ASKED = re.compile(
    r"(?P<cut>[^:]+):(?:every=(?P<every>[0-9]{1,5})|steps=(?P<steps>[0-9]{1,5}(?:-[0-9]{1,5})*))(?P<extrapolate>:extrapolate)?"
)


def asked_reuse(asked: str | None, base: Schedule, bundle: Bundle, precisions: Sequence[str], table: SamplerTable) -> ReuseSteps | None:
    """Return the steps that reuse features, or None if no step does.

    Args:
        asked: such as `skip_3:every=2`, `skip_3:steps=3-5-7:extrapolate` or `none`; None keeps those of the schedule to start from.
        base: schedule to start from.
        bundle: bundle of the networks.
        precisions: precisions that may take the steps.
        table: coefficients of the chain.

    Raises:
        UsageError: the request names no cut of these precisions, or no steps of the chain.
    """
    if asked == NONE or (asked is None and base.cut is None):
        return None
    if asked is None:
        cut, found = str(base.cut), frozenset(step.step for step in base.steps if step.reuse is not None)
        extrapolates = base.extrapolates
        if len(base.steps) != table.steps:
            raise UsageError(
                "The steps that reuse features are those of a chain of another length.",
                found=f"{table.steps} steps, from a schedule of {len(base.steps)}",
                expected="--reuse CUT:every=K, or --reuse none",
            )
    else:
        cut, found, extrapolates = _read(asked, table.steps)
    _check_cut(cut, bundle, precisions)
    reuse = ReuseSteps(cut, found, tuple(dict.fromkeys(precisions)))
    return reuse.extrapolating(table.timestep) if extrapolates else reuse


def cut_of_budget(asked: str | None, base: Schedule, bundle: Bundle, precisions: Sequence[str]) -> str | None:
    """Return the cut at which the steps that a budget buys may reuse features, or None if none may.

    Args:
        asked: such as `skip_3:auto`, or `none`; None takes the cut of the schedule to start from.
        base: schedule to start from.
        bundle: bundle of the networks.
        precisions: candidates of the budget.

    Raises:
        UsageError: the request lists steps, or names no cut of these precisions.
    """
    if asked == NONE or (asked is None and base.cut is None):
        return None
    cut, _, steps = (f"{base.cut}:{AUTO}" if asked is None else asked).partition(":")
    if steps != AUTO:
        raise UsageError("A budget chooses the steps that reuse features itself.", found=asked, expected="--reuse CUT:auto, or none")
    _check_cut(cut, bundle, precisions)
    return cut


def _check_cut(cut: str, bundle: Bundle, precisions: Sequence[str]) -> None:
    for precision in dict.fromkeys(precisions):
        known = bundle.manifest.precisions[precision].cuts
        if cut not in known:
            raise UnknownNameError(f"The bundle's {precision} has no such cut.", found=cut, known=known or ("none",))


def _read(asked: str, steps: int) -> tuple[str, frozenset[int], bool]:
    found = ASKED.fullmatch(asked)
    if asked.endswith(f":{AUTO}"):
        raise UsageError("Only a budget chooses the steps that reuse features.", found=asked, expected="--policy budget with it")
    if found is None:
        raise UsageError(
            "--reuse is not understood.",
            found=asked,
            expected="CUT:every=K, such as skip_3:every=2, or CUT:steps=I-J-K, with or without :extrapolate; or none",
        )
    if found["every"] is not None:
        every = int(found["every"])
        chosen = frozenset(step for step in range(steps) if every and step % every)
    else:
        chosen = frozenset(map(int, found["steps"].split("-")))
    if not chosen or min(chosen) < 1 or max(chosen) >= steps:
        raise UsageError("--reuse names no steps of the chain.", found=asked, expected=f"every=2 or more, or steps from 1 to {steps - 1}")
    return found["cut"], chosen, found["extrapolate"] is not None
