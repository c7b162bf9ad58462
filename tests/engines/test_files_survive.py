"""A file whose writer is killed at any moment is the old one or the new one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.files import remove_parts, replacing, sync_tree, write_text
from tests.dying import every_death


def test_a_file_is_the_old_one_or_the_new_one_wherever_its_writer_dies(tmp_path: Path) -> None:
    path = tmp_path / "file"
    seen = []
    for _ in every_death(lambda: write_text(path, "old"), lambda: write_text(path, "new")):
        seen.append(path.read_text())
        remove_parts(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert seen == sorted(seen, reverse=True)  # old, ..., old, new, ..., new
    assert seen.count("old") >= 3  # before the part is made, before it is written, before it takes the name
    assert seen[-1] == "new"


def test_parts_of_one_file_are_removed_and_nothing_else(tmp_path: Path) -> None:
    names = [".a.x1.part", ".a.x2.part", ".b.x3.part", "a", "a.part", ".a.lock"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[3:])


def test_content_and_name_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def sync(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        done.append("folder" if path.is_dir() else f"file of {path.stat().st_size} bytes")

    rename = Path.replace
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append("name"), rename(path, target))[1])
    with replacing(tmp_path / "new" / "file") as temporary:
        temporary.write_text("whole")
    assert done == ["file of 5 bytes", "name", "folder"]
    done.clear()
    (tmp_path / "new" / "deep").mkdir()
    sync_tree(tmp_path / "new")
    assert sorted(done) == ["file of 5 bytes", "folder", "folder"]
