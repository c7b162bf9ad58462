"""Keep the samples of one chain on disk until they are compared with the next chain's."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from engines.arrays import Float32
from engines.errors import PtqdError
from engines.host.room import free_bytes, size_text


class HeldStates:
    """A temporary file of states [C, H, W], written in order, then read back in order from the first.

    Args:
        shape: shape of one state.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # closing retries the write that did not fit
            self._file.close()

    def write(self, states: Float32) -> None:
        """Append states [n, C, H, W].

        Raises:
            PtqdError: the disk is full.
        """
        try:
            self._file.write(states.astype(np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            folder = Path(tempfile.gettempdir())
            raise PtqdError(
                "The full-precision samples cannot be kept for the comparison.",
                found=f"{folder}: {error.strerror}; {size_text(free_bytes(folder))} free",
                expected="enough space for the samples of one seed in float32",
                mend="set TMPDIR to a folder on a larger disk",
            ) from error

    def rewind(self) -> None:
        """Go back to the first state, to read from there."""
        self._file.seek(0)

    def read(self, count: int) -> Float32:
        """Read the next `count` states [count, C, H, W]."""
        size = count * int(np.prod(self._shape)) * np.dtype(np.float32).itemsize
        return np.frombuffer(self._file.read(size), np.float32).reshape(count, *self._shape)
