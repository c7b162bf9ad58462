"""The memory-mapped store: values, history and the files themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calib.walk.state_store import StateStore


def _store(folder: Path, history_length: int = 0) -> StateStore:
    return StateStore(folder, (6, 2, 3), ("w8a8", "w4a8"), history_length)


def test_arrays_are_files_in_a_folder_of_their_own(tmp_path: Path) -> None:
    with _store(tmp_path / "new", history_length=1) as store:
        arrays = [store.states, store.reference, *store.outputs.values()]
        assert list(store.outputs) == ["w8a8", "w4a8"]
        assert all(isinstance(array, np.memmap) and array.shape == (6, 2, 3) and array.dtype == np.float32 for array in arrays)
        files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
        assert [path.stat().st_size for path in files] == [6 * 2 * 3 * 4] * 6


def test_the_folder_goes_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), _store(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_two_stores_share_a_parent(tmp_path: Path) -> None:
    with _store(tmp_path) as one, _store(tmp_path) as other:
        one.states[:] = 1
        assert other.states.max() == 0


def test_history_shifts_by_one_a_step(tmp_path: Path) -> None:
    batches = [slice(0, 4), slice(4, 6)]
    with _store(tmp_path, history_length=2) as store:
        for step in range(4):
            for batch in batches:
                history = store.history(batch, step)
                exact = store.exact_history(batch, step)
                assert [float(kept.flat[0]) for kept in history] == [float(step - 1 - j) for j in range(min(step, 2))]
                assert [float(kept.flat[0]) for kept in exact] == [float(step - 1 - j + 50) for j in range(min(step, 2))]
                prediction = np.full_like(store.states[batch], step)
                store.advance(batch, prediction + 100, [prediction, *history], [prediction + 50, *exact])
            assert np.all(store.states == step + 100)
