"""Models in a Hugging Face cache: `models--org--name/` with `refs/`, `blobs/`, and `snapshots/` of links to the blobs."""

from __future__ import annotations

import re
from pathlib import Path

from engines.errors import UsageError
from engines.untrusted.plain_file import read_plain
from ptqd_export.models.tensors.downloaded_file import CACHED, hub_id

MAIN = "main"
_COMMIT = re.compile(r"\w[\w.-]*")


def is_cached_model(path: Path) -> bool:
    """Return whether a folder is that of a model in a Hugging Face cache."""
    copied = (path / "snapshots").is_dir() and (path / "refs").is_dir()
    return copied or CACHED.fullmatch(path.absolute().name) is not None


def cached_snapshot(path: Path) -> Path:
    """Return the snapshot in the folder of a cached model.

    Raises:
        UsageError: there is none, or it is unclear which.
    """
    found = find_snapshot(path, None)
    if found is None:
        raise UsageError(
            "The model's download is incomplete.",
            found=f"{path} without a snapshot of refs/{MAIN}",
            expected="a model in a Hugging Face cache",
            mend=f"download it again with `hf download {hub_id(path) or 'ORG/NAME'}`",
        )
    return found


def find_snapshot(path: Path, revision: str | None) -> Path | None:
    """Return the snapshot of a revision in the folder of a cached model; None if it is not there.

    Args:
        path: folder `models--org--name`.
        revision: branch, tag or commit; None takes `main`, or the only snapshot where the cache does not know `main`.

    Raises:
        UsageError: there are several snapshots, and the cache does not know which is `main`.
    """
    snapshots = path / "snapshots"
    commit = _commit(path / "refs" / (revision or MAIN)) or revision
    if commit is not None:
        return snapshots / commit if (snapshots / commit).is_dir() else None
    found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    if len(found) > 1:
        raise UsageError(
            "The cache holds several snapshots of the model.",
            found=f"{snapshots}: {', '.join(one.name for one in found)}",
            expected=f"one snapshot, or refs/{MAIN} that names one",
            mend=f"name the snapshot, such as {found[0]}",
        )
    return found[0] if found else None


def _commit(reference: Path) -> str | None:
    """Return the commit that a reference names; None if there is no such reference."""
    try:
        commit = read_plain(reference, 200).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None
