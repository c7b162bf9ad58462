"""How long a build will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engines.terminal.duration import duration

LISTED = 3


@dataclass(frozen=True)
class BuildEstimate:
    """How long a build will take.

    Attributes:
        seconds: seconds of every stage that follows, in order.
        rows: rows that these stages take through the network.
        row_seconds: seconds of a row at full precision.
    """

    seconds: Mapping[str, float]
    rows: int
    row_seconds: float

    def __str__(self) -> str:
        longest = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)[:LISTED]
        listed = ", ".join(f"{stage} {duration(self.seconds[stage])}" for stage in longest)
        return (
            f"about {duration(sum(self.seconds.values()))}: {self.rows:,} network evaluations, "
            f"{1000 * self.row_seconds:.2g} ms each at full precision; {listed}"
        )
