"""States that rest on disk."""

from __future__ import annotations

import io

import numpy as np
import pytest

from engines.errors import PtqdError
from engines.host.held_states import HeldStates

STATES = np.random.default_rng(0).normal(size=(9, 1, 3, 2)).astype(np.float32)


def test_states_come_back_in_other_batches() -> None:
    with HeldStates((1, 3, 2)) as held:
        held.write(STATES[:4])
        held.write(STATES[4:])
        held.rewind()
        np.testing.assert_array_equal(np.concatenate([held.read(7), held.read(2)]), STATES)


def test_full_disk_is_an_error_that_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with HeldStates((1, 3, 2)) as held, pytest.raises(PtqdError, match=r"(?s)No space left on device.*TMPDIR"):
        held.write(STATES)
