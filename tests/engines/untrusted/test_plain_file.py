"""Plain files are read; what is none is refused at once, and nothing stays open."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from engines.untrusted.plain_file import open_plain, read_plain


def test_a_plain_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_plain(tmp_path / "a", 4) == read_plain(tmp_path / "link", 4) == b"1234"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_plain(tmp_path / "a", 3)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "circle", "nothing", "null byte"])
def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a\0b" if kind == "null byte" else "a")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "circle"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    elif kind == "folder":
        path.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with socket.socket(socket.AF_UNIX) as bound:
        if kind == "socket":
            bound.bind(str(path))
        with pytest.raises(OSError, match=r"regular file|directory|null byte|symbolic links|No such"):
            open_plain(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
