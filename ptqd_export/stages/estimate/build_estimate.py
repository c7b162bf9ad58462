"""Estimates how long a build will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.host.duration import duration
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.estimate.costs import StageCosts
from ptqd_export.stages.estimate.network_rows import network_rows
from ptqd_export.stages.estimate.rates import measure_rates

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


def estimate_build(context: BuildContext, traced: Path, traced_in: float, stages: Sequence[str]) -> BuildEstimate:
    """Estimate the stages that follow, from the networks that they run and from rates that this call measures on this machine.

    Args:
        context: context of the build.
        traced: folder of the stage `trace`.
        traced_in: seconds that this stage took; 0 if it was reused.
        stages: names of the stages that follow, in order.
    """
    rates = measure_rates(context, traced)
    costs, rows = StageCosts(context, traced, traced_in, rates), [network_rows(context, stage) for stage in stages]
    return BuildEstimate({stage: costs.seconds(stage) for stage in stages}, sum(one.graph + one.torch for one in rows), rates.graph_row)
