"""Errors that a user can fix. Each is one message: what is wrong, what was found, what was expected, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PtqdError(Exception):
    """The run failed (exit code 1). Base class of every error that the command lines print without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, mend: str | None = None) -> None:
        parts = [what]
        if found is not None:
            parts.append(f"  found:    {found}")
        if expected is not None:
            parts.append(f"  expected: {expected}")
        if mend is not None:
            parts.append(f"  mend:     {mend}")
        super().__init__("\n".join(parts))


class UsageError(PtqdError):
    """The command line or the plan is wrong (exit code 2)."""

    exit_code = 2


class MissingBackendError(PtqdError):
    """A backend or device is missing (exit code 3)."""

    exit_code = 3


class DeviceLostError(PtqdError):
    """A GPU failed during the run (exit code 1). Nothing works on it in this process any more, but it may in a new one."""


class BundleError(PtqdError):
    """A bundle is damaged or incomplete, or has an unknown schema version (exit code 1)."""


class UnknownNameError(UsageError):
    """A name is none of the known ones (exit code 2). The mend proposes the most similar name, if any is similar."""

    def __init__(self, what: str, *, found: str, known: Iterable[str], mend: str | None = None) -> None:
        names = tuple(known)
        super().__init__(what, found=found, expected=" or ".join(names) or "none", mend=did_you_mean(found, names) or mend)


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def some_of(names: Sequence[object], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def did_you_mean(name: str, known: Iterable[str], least: float = 0.6) -> str | None:
    """Return a question that proposes the known name most similar to `name` in any case, or None if none is similar.

    Args:
        name: name that is unknown.
        known: names to propose.
        least: similarity below which nothing is proposed, from 0 to 1; see `difflib.SequenceMatcher.ratio`.
    """
    names = {one.lower(): one for one in known}
    nearest = difflib.get_close_matches(name.strip().lower(), names, n=1, cutoff=least)
    return f'did you mean "{names[nearest[0]]}"?' if nearest else None
