"""Whole files or none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engines.errors import UsageError
from engines.host.files import files_below, remove_parts, replacing, sha256, sync_tree, writable_folder, write_text
from tests.dying import every_death


def test_sha256_is_the_published_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_below_are_found_through_links_and_once(tmp_path: Path) -> None:
    part, store = tmp_path / "model" / "part", tmp_path / "store"
    for path in (part / "own", part / "sub" / "own", store / "sub" / "stored", store / ".cache" / "hidden", part / ".hidden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    links = {
        part / "linked": store, part / "again": store, part / "up": part.parent, part / "loop": part, store / "sub" / "back": store,
        part / "file": store / "sub" / "stored", part / "broken": tmp_path / "none", store / "root": Path("/"),
    }  # fmt: skip
    for link, target in links.items():
        link.symlink_to(target)
    assert [str(path.relative_to(part)) for path in files_below(part)] == ["again/sub/stored", "file", "own", "sub/own"]
    (tmp_path / "whole").symlink_to(store)
    assert [str(path.relative_to(tmp_path)) for path in files_below(tmp_path / "whole")] == ["whole/sub/stored"]


def test_text_appears_whole_in_a_new_folder_and_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.txt"
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder) == folder
    assert list(folder.iterdir()) == []
    assert writable_folder(folder) == folder


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folder_in_the_place_of_a_file_is_an_error_of_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UsageError, match="The output folder cannot be written") as caught:
        writable_folder(tmp_path / name)
    assert f"found:    {tmp_path / name}: " in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


# Killed, or without power


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

    def rename(path: Path, target: Path) -> None:
        done.append("name")
        os.rename(path, target)  # noqa: PTH104 - what it stands in for is pathlib's

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    with replacing(tmp_path / "new" / "file") as temporary:
        temporary.write_text("whole")
    assert done == ["file of 5 bytes", "name", "folder"]
    done.clear()
    (tmp_path / "new" / "deep").mkdir()
    sync_tree(tmp_path / "new")
    assert sorted(done) == ["file of 5 bytes", "folder", "folder"]
