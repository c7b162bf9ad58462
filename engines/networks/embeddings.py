"""Compute and cache the inputs of a network's body that depend only on timestep and conditioning, once per pair instead of per state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.networks.conditioning import Conditioning

TIMESTEP = "timestep"

BLOCK_BYTES = 2**22
"""Bytes of results computed in one call. These layers are wide but have few inputs: a call spends its time reading weights, so ten rows
take as long as one.
"""

KEPT_BYTES = 2**25
"""Bytes of results to cache, or more if one call needs more: 290 rows of DiT-S/2, or 1700 rows of a U-Net with 36 million parameters."""

Key: TypeAlias = tuple[float, int]
"""Timestep and row of the conditioning table; either is 0 if the results do not depend on it."""


class Embedding:
    """One input of a network's body, with a cache that drops the least recently used rows first.

    Args:
        engine: engine that computes this input from the timestep, the conditioning, or both.
        conditioning: conditioning table; None for unconditional models.
        timesteps: timesteps of the coming chains in order, so that one call can also compute what the next steps need.
    """

    def __init__(self, engine: Engine, conditioning: Conditioning | None, timesteps: Sequence[float] = ()) -> None:
        self.engine = engine
        self._conditioning = conditioning
        self._inputs = {spec.name for spec in engine.inputs}
        self._timesteps = tuple(timesteps) if TIMESTEP in self._inputs else ()
        self._row_bytes = 4 * int(np.prod(engine.output.shape))
        self._kept: OrderedDict[Key, Float32] = OrderedDict()
        self._asked: list[Key] = []
        self._given: Float32

    def __call__(self, timestep: float, rows: Int64) -> Float32:
        """Return the input for a batch, float32 [N, values], read-only.

        Args:
            timestep: timestep of all samples.
            rows: [N] row of the conditioning table for each sample, or `NULL_ROW`.
        """
        asked = [self._key(timestep, row) for row in rows.tolist()]
        if asked != self._asked:
            self._keep(dict.fromkeys(asked))
            self._asked, self._given = asked, np.stack([self._kept[key] for key in asked])
        return self._given

    def forget(self) -> None:
        """Clear the cache."""
        self._kept.clear()
        self._asked = []

    def conditioned(self, conditioning: Conditioning) -> Embedding:
        """Return this embedding with another conditioning table."""
        return Embedding(self.engine, conditioning, self._timesteps) if self._inputs - {TIMESTEP} else self

    def run_by(self, engine: Engine) -> Embedding:
        """Return this embedding computed by another engine."""
        return Embedding(engine, self._conditioning, self._timesteps)

    def _key(self, timestep: float, row: int) -> Key:
        return timestep if TIMESTEP in self._inputs else 0.0, row if self._inputs - {TIMESTEP} else 0

    def _keep(self, asked: Collection[Key]) -> None:
        missing = [key for key in asked if key not in self._kept]
        block = max(1, BLOCK_BYTES // self._row_bytes)
        if missing:
            wanted = [*missing, *self._ahead(asked)][: max(len(missing), block)]
            for begin in range(0, len(wanted), block):
                keys = wanted[begin : begin + block]
                self._kept.update(zip(keys, self._computed(keys), strict=True))
        for key in asked:
            self._kept.move_to_end(key)
        while len(self._kept) > max(len(asked), KEPT_BYTES // self._row_bytes):
            self._kept.popitem(last=False)

    def _ahead(self, asked: Collection[Key]) -> Iterator[Key]:
        """Yield the keys that later steps will need if they use the same rows, except those in the cache."""
        timestep = next(iter(asked))[0]
        later = self._timesteps[self._timesteps.index(timestep) + 1 :] if timestep in self._timesteps else ()
        return (key for later_timestep in later for _, row in asked if (key := (later_timestep, row)) not in self._kept)

    def _computed(self, keys: Sequence[Key]) -> Iterator[Float32]:
        timesteps, rows = zip(*keys, strict=True)
        feeds: dict[str, NDArray[Any]] = {TIMESTEP: np.array(timesteps, dtype=np.float32)}
        if self._conditioning is not None:
            feeds |= self._conditioning.values(np.array(rows, dtype=np.int64))
        out = self.engine.run({name: feeds[name] for name in self._inputs})
        return (row.copy() for row in out)  # a view would keep the whole block alive
