"""Rows in memory as far as they fit, else in files that go when the store is closed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calib.rounding.row_store import RowStore

FLOAT = np.dtype(np.float32)


def test_what_does_not_fit_lies_in_files(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    with RowStore(folder, memory_bytes=1000) as store:
        first, second, third = (store.empty((count, 10), FLOAT) for count in (20, 10, 5))
        assert [isinstance(array, np.memmap) for array in (first, second, third)] == [False, True, False]
        assert (store.in_memory, store.in_files) == (1000, 400)
        assert sum(path.stat().st_size for path in folder.iterdir()) == 400
        second[:] = 3
        assert (np.asarray(second[[4, 1]]) == 3).all()
    assert not folder.exists()


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "7").write_bytes(b"old")
    with RowStore(folder, 0) as store:
        assert list(folder.iterdir()) == []
        assert store.empty((2,), np.dtype(np.int64)).dtype == np.int64
