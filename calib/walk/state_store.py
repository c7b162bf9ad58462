"""Keeps a walk's states and outputs in memory-mapped files, so that memory does not grow with the number of samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from engines.arrays import Float32, Int64
from engines.host.mapped_file import mapped_file
from engines.host.room import NoRoomError


class StateStore:
    """Float32 arrays [samples, *shape] in the files of a temporary folder, which closing the store removes.

    Attributes:
        states: current state of every sample.
        reference: full-precision output at the current step, after guidance.
        outputs: quantized outputs at the current step, after guidance, by precision.
        features: features that later steps reuse, [samples, branches, ...], once some are kept.
        earlier: those that were kept before, once there are some and they were asked for.
    """

    features: Float32
    earlier: Float32 | None = None

    def __init__(self, parent: Path, shape: tuple[int, ...], precisions: Sequence[str], history_length: int) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self._folder = tempfile.TemporaryDirectory(prefix="walk-", dir=parent)
        self._shape = shape
        try:
            self.states = self._map("states")
            self.reference = self._map("reference")
            self.outputs = {name: self._map(f"outputs-{number}") for number, name in enumerate(precisions)}
            self._history = [self._map(f"history-{j}") for j in range(history_length)]
            self._exact_history = [self._map(f"exact-history-{j}") for j in range(history_length)]
        except NoRoomError:
            self.close()
            raise

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._folder.cleanup()

    def history(self, batch: slice, step: int) -> list[Float32]:
        """Return the predictions `m_{i-1}, m_{i-2}, ...` that exist at a step, as copies because `advance` overwrites them."""
        return [np.array(predictions[batch]) for predictions in self._history[:step]]

    def exact_history(self, batch: slice, step: int) -> list[Float32]:
        """Return what full precision would have predicted at the same states, as copies."""
        return [np.array(predictions[batch]) for predictions in self._exact_history[:step]]

    def advance(self, batch: slice, states: Float32, predictions: Sequence[Float32], exact: Sequence[Float32]) -> None:
        """Store the next states and, as their history, the predictions `m_i, m_{i-1}, ...` and those of full precision."""
        self.states[batch] = states
        for files, newest_first in ((self._history, predictions), (self._exact_history, exact)):
            for kept, prediction in zip(files, newest_first, strict=False):
                kept[batch] = prediction

    def keep(self, batch: slice, features: Float32, *, and_earlier: bool = False) -> None:
        """Store features [batch, branches, ...], and those that they replace as earlier ones. The first make room for every sample."""
        shape = self._shape[0], *features.shape[1:]
        if not hasattr(self, "features"):
            self.features = self._map("features", shape)
        elif and_earlier:
            self.earlier = self._map("earlier", shape) if self.earlier is None else self.earlier
            self.earlier[batch] = self.features[batch]
        self.features[batch] = features

    def _map(self, name: str, shape: tuple[int, ...] | None = None) -> Float32:
        return mapped_file(Path(self._folder.name) / name, np.float32, shape or self._shape)


def store_bytes(shape: tuple[int, ...], precisions: int = 0, history_length: int = 0) -> int:
    """Return the bytes per sample in a store with this many precisions, or the bytes of one state if there are none."""
    arrays = 2 + precisions + 2 * history_length if precisions else 1
    return arrays * math.prod(shape) * np.dtype(np.float32).itemsize


def sample_numbers(batch: slice) -> Int64:
    """Return the numbers of the samples of a batch."""
    return np.arange(batch.start, batch.stop, dtype=np.int64)
