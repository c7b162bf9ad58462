"""The Python packages that are installed, and the extras of ptqd-export that install those that are missing."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from engines.errors import MissingBackendError

PROJECT = "ptqd-export"

FOR_DEVELOPERS = "dev"

_OTHER_NAMES = {"yaml": "pyyaml", "cuda": "cuda-bindings"}
"""Packages by the name of the module that they provide, where the names differ by more than case, `-` and `_`."""


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def missing_extra(error: ModuleNotFoundError) -> MissingBackendError | None:
    """Return the error that names the extra to install, or None if no extra provides the module, or the module is there."""
    module = (error.name or "").partition(".")[0]
    extras = _extras_with(module)
    if not extras or _is_there(module):
        return None
    return MissingBackendError(
        "A package that this command needs is not installed.",
        found=f"no module {module}",
        mend=" or ".join(f"pip install '{PROJECT}[{extra}]'" for extra in extras),
    )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _extras_with(module: str) -> list[str]:
    """Return the extras whose packages provide a module."""
    package = _plain(_OTHER_NAMES.get(module, module))
    found = (re.fullmatch(r"([\w.-]+).*; extra == \"(\w+)\"", line) for line in requires(PROJECT) or ())
    return [match[2] for match in found if match and _plain(match[1]) == package and match[2] != FOR_DEVELOPERS]


def _plain(name: str) -> str:
    """Return the name of a package as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
