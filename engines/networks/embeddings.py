"""What a network computes of timestep and condition alone: once for each pair of them, not once for each state."""

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
"""Results of one call. A network's layers for this are wide and their inputs few: a call spends its time reading weights, and one row takes
as long as ten.
"""

KEPT_BYTES = 2**25
"""Results that are kept, or those of the states of one call where they are more: 290 rows of DiT-S/2, 1700 of a U-Net of 36 million."""

Key: TypeAlias = tuple[float, int]
"""Timestep and row of the conditioning table; 0 where the results do not depend on it."""


class Embedding:
    """One input of a network's body, a row of it for every row of the call. Whatever was used longest ago is dropped first.

    Args:
        engine: of the graph of this input; it takes timestep, conditions or both.
        conditioning: None for unconditional models.
        timesteps: of the chains to come, in order, so that a call computes what the next steps will ask for.
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
        """Float32 [rows, values], not to be written to.

        Args:
            timestep: of all rows.
            rows: of the conditioning table, or `NULL_ROW`.
        """
        asked = [self._key(timestep, row) for row in rows.tolist()]
        if asked != self._asked:
            self._keep(dict.fromkeys(asked))
            self._asked, self._given = asked, np.stack([self._kept[key] for key in asked])
        return self._given

    def forget(self) -> None:
        """As if nothing had been computed yet."""
        self._kept.clear()
        self._asked = []

    def conditioned(self, conditioning: Conditioning) -> Embedding:
        """The same of another table."""
        return Embedding(self.engine, conditioning, self._timesteps) if self._inputs - {TIMESTEP} else self

    def run_by(self, engine: Engine) -> Embedding:
        """The same, computed by another engine."""
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
        """What the steps after this one will ask for, if they are of the same rows."""
        timestep = next(iter(asked))[0]
        later = self._timesteps[self._timesteps.index(timestep) + 1 :] if timestep in self._timesteps else ()
        return (key for later_timestep in later for _, row in asked if (key := (later_timestep, row)) not in self._kept)

    def _computed(self, keys: Sequence[Key]) -> Iterator[Float32]:
        timesteps, rows = zip(*keys, strict=True)
        feeds: dict[str, NDArray[Any]] = {TIMESTEP: np.array(timesteps, dtype=np.float32)}
        if self._conditioning is not None:
            feeds |= self._conditioning.values(np.array(rows, dtype=np.int64))
        out = self.engine.run({name: feeds[name] for name in self._inputs})
        return (row.copy() for row in out)  # not views, which would keep the whole block
