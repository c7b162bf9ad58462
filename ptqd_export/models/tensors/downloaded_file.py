"""Refuse files whose download was never finished: links of a Hugging Face cache without a blob, and pointers of Git LFS."""

from __future__ import annotations

import re
from pathlib import Path

from engines.errors import UsageError
from engines.untrusted.plain_file import open_plain

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""First bytes of the text that Git stores in place of a large file."""

CACHED = re.compile(r"models--([^/]+)")
"""Name of a model's folder in a Hugging Face cache: its id, with `--` for the slash."""


def check_downloaded(path: Path) -> None:
    """Refuse a file that is only a promise of its content.

    Raises:
        UsageError: the path is a link to a missing file, the file is empty, or it is a pointer of Git LFS.
    """
    if not path.is_file():
        found = f"{path} is a link to {path.readlink()}, which is missing" if path.is_symlink() else f"no file {path}"
        raise _incomplete(path, found, f"download it again{_command(path)}, or copy the files that its links point to")
    with open_plain(path) as file:
        begin = file.read(len(LFS_POINTER))
    if not begin:
        raise _incomplete(path, f"{path} is empty", f"download it again{_command(path)}")
    if begin == LFS_POINTER:
        raise _incomplete(path, f"{path} is a pointer of Git LFS", f"run `git lfs pull` in {path.parent}")


def hub_id(path: Path) -> str | None:
    """Return the id of the model if the path lies in a Hugging Face cache, else None."""
    names = (CACHED.fullmatch(part) for part in reversed(path.absolute().parts))
    return next((found[1].replace("--", "/", 1) for found in names if found), None)


def _command(path: Path) -> str:
    found = hub_id(path)
    return f" with `hf download {found}`" if found else ""


def _incomplete(path: Path, found: str, mend: str) -> UsageError:
    return UsageError("The model's download is incomplete.", found=found, expected=f"the content of {path.name}", mend=mend)
