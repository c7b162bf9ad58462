"""Errors that a user can fix. Each is one message: what is wrong, what was found, what was expected, and how to mend it."""

from __future__ import annotations


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


class BundleError(PtqdError):
    """A bundle is damaged or incomplete, or has an unknown schema version (exit code 1)."""
