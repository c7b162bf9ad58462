"""How long a build will take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.terminal.duration import duration

LISTED = 3
"""Most stages, and most quicker plans, that are named."""

LONG = 3600.0
"""Seconds from which quicker plans are named."""


@dataclass(frozen=True)
class BuildEstimate:
    """How long a build will take.

    Attributes:
        seconds: seconds of every stage that follows, in order.
        rows: rows that these stages take through the network.
        row_seconds: seconds of a row at full precision.
        quicker: seconds that changes of the plan save, the most first.
        on_a_cluster: whether the walk runs on a cluster.
        idle_gpu: whether PyTorch has a GPU that could run the networks in place of the CPU.
        measured_on: what the row was measured on, which will run the networks of the statistics; empty if it is not told.
    """

    seconds: Mapping[str, float]
    rows: int
    row_seconds: float
    quicker: Mapping[str, float] = field(default_factory=dict)
    on_a_cluster: bool = False
    idle_gpu: bool = False
    measured_on: str = ""

    def __str__(self) -> str:
        longest = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)[:LISTED]
        listed = ", ".join(f"{stage} {duration(self.seconds[stage])}" for stage in longest)
        return (
            f"about {duration(sum(self.seconds.values()))}: {self.rows:,} network evaluations, "
            f"{_milliseconds(self.row_seconds)} ms each at full precision{self._where}; {listed}{self._ways()}"
        )

    @property
    def _where(self) -> str:
        return f" on {self.measured_on}" if self.measured_on else ""

    def _ways(self) -> str:
        """Return how a long build gets shorter."""
        if sum(self.seconds.values()) < LONG:
            return ""
        ways = [f"{change} saves about {duration(saved)}" for change, saved in [*self.quicker.items()][:LISTED]]
        ways += ['target.measure "torch" with calibration.device "cuda" measures on the GPU'] if self.idle_gpu else []
        ways += [] if self.on_a_cluster else ["--ray shares the walk among machines"]
        return f". Quicker: {', '.join(ways)}" if ways else ""


def _milliseconds(seconds: float) -> str:
    """Two digits, or all of them before the point."""
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.2g}"
