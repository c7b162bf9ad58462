"""Arrays in files whose room is there from the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.rounding.row_store import RowStore
from calib.walk.state_store import StateStore, store_bytes
from engines.host.mapped_file import mapped_file
from engines.host.room import NoRoomError
from tests.small_disks import largest_file, small_disk


def test_array_is_zeros_that_take_their_room_and_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    array = mapped_file(tmp_path / "array", np.float32, (3, 50_000))
    assert not array.any()
    found = (tmp_path / "array").stat()
    assert found.st_size == 600_000
    assert found.st_blocks * 512 >= 600_000
    array[1] = 7
    array.flush()  # type: ignore[attr-defined]  # of memmap
    np.testing.assert_array_equal(np.fromfile(tmp_path / "array", np.float32).reshape(3, 50_000), array)


def test_a_file_that_is_there_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "array").write_text("precious")
    with pytest.raises(FileExistsError):
        mapped_file(tmp_path / "array", np.float32, (3,))
    assert (tmp_path / "array").read_text() == "precious"


def test_too_little_room_is_an_error_at_once_and_not_the_end_of_the_process_later(tmp_path: Path) -> None:
    with pytest.raises(NoRoomError, match=f"found:    {tmp_path}/array: File too large"), largest_file(1000):
        mapped_file(tmp_path / "array", np.float32, (300,))


def test_stores_on_a_full_disk_raise_and_leave_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        with pytest.raises(NoRoomError, match="No space left on device"):
            StateStore(disk, (40_000, 4), ("w8a8",), 0)
        with pytest.raises(NoRoomError, match="No space left on device"), RowStore(disk / "rows", 0) as store:
            store.empty((2**20,), np.dtype(np.float32))
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize(("precisions", "history"), [(("w8a8",), 0), (("w8a8", "w4a8"), 2)])
def test_a_store_is_as_large_as_foretold(tmp_path: Path, precisions: tuple[str, ...], history: int) -> None:
    with StateStore(tmp_path, (5, 3, 4), precisions, history):
        size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size == 5 * store_bytes((3, 4), len(precisions), history)
    assert store_bytes((3, 4)) == 48
