"""Stored contracts: of a known version, as they should be and, where nothing else vouches for them, with a hash of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import ValidationError

from engines.bundle.bundle_files import COPY_AGAIN
from engines.chain.schedule import Strict
from engines.errors import BundleError

DIGEST = "digest"
"""Key of a sealed object that holds the hash of all the others."""

Contract = TypeVar("Contract", bound=Strict)


def contract(kind: type[Contract], content: Mapping[str, object], source: Path) -> Contract:
    """What a JSON object holds.

    Raises:
        BundleError: it is of another schema version, or is not what it should be.
    """
    _check_version(kind, content, source)
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise BundleError("A file of the bundle does not hold what it should.", found=f"{source}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Where the first of the problems is, and what it is."""
    first = error.errors(include_input=False)[0]
    where = ".".join(f"{part!s:.200}" for part in first["loc"]) or "the whole file"
    return f"{where}: {first['msg']:.300}"


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """With the hash of everything in it: no lock against who wants to change it, but damage does not go unnoticed."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return {**rest, DIGEST: _digest(rest)}


def unsealed(kind: type[Contract], content: Mapping[str, object], source: Path) -> dict[str, object]:
    """What was sealed.

    Raises:
        BundleError: it is of another schema version, or was changed since.
    """
    _check_version(kind, content, source)
    rest = {key: value for key, value in content.items() if key != DIGEST}
    if content.get(DIGEST) != _digest(rest):
        raise BundleError(
            "A file of the bundle was changed or damaged.",
            found=f"{source}: {DIGEST} {content.get(DIGEST)!r:.80}",
            expected=f"{_digest(rest)}, the SHA-256 of the rest",
            mend=COPY_AGAIN,
        )
    return rest


def _digest(content: Mapping[str, object]) -> str:
    """Of the object, however its text is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_version(kind: type[Strict], content: Mapping[str, object], source: Path) -> None:
    version, known = content.get("schema_version"), get_args(kind.model_fields["schema_version"].annotation)
    if version not in known or isinstance(version, bool):
        raise BundleError(
            "The bundle has a schema version that this ptqd-run does not know.",
            found=f"{source}: {version!r:.80}",
            expected=" or ".join(map(str, known)),
            mend="use the ptqd-export version that built it, or rebuild the bundle with this one",
        )
