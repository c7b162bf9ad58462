"""Validate stored JSON contracts: schema version, content, and a hash of their own where no manifest covers them."""

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
"""Key in a sealed object whose value is the hash of all other entries."""

Contract = TypeVar("Contract", bound=Strict)


def contract(kind: type[Contract], content: Mapping[str, object], source: Path) -> Contract:
    """Validate a JSON object as a contract of class `kind` and return it.

    Raises:
        BundleError: the object has another schema version or invalid content.
    """
    _check_version(kind, content, source)
    try:
        return kind.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise BundleError("A file of the bundle has invalid content.", found=f"{source}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first validation problem: where it is, and what it is."""
    first = error.errors(include_input=False)[0]
    where = ".".join(f"{part!s:.200}" for part in first["loc"]) or "the whole file"
    return f"{where}: {first['msg']:.300}"


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """Return the object with a hash of its content: it reveals damage, but does not stop deliberate changes."""
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return {**rest, DIGEST: _digest(rest)}


def unsealed(kind: type[Contract], content: Mapping[str, object], source: Path) -> dict[str, object]:
    """Check a sealed object and return its content without the hash.

    Raises:
        BundleError: the object has another schema version, or was changed after it was sealed.
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
    """Hash an object independently of the layout of its text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _check_version(kind: type[Strict], content: Mapping[str, object], source: Path) -> None:
    version, known = content.get("schema_version"), get_args(kind.model_fields["schema_version"].annotation)
    if version not in known or isinstance(version, bool):
        raise BundleError(
            "This ptqd-run does not support the bundle's schema version.",
            found=f"{source}: {version!r:.80}",
            expected=" or ".join(map(str, known)),
            mend="use the ptqd-export version that built the bundle, or rebuild the bundle with this one",
        )
