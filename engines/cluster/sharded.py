"""Runs units of work on a cluster and stores each result as a shard. Units that an earlier run finished are not repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from engines.cluster.pool import Work, WorkerPool
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.cluster.shards import Arrays, Shards
from engines.terminal.progress import progress

Unit = TypeVar("Unit")


def complete(
    cluster: Cluster,
    size: WorkerSize,
    work: Callable[[Any], Work[Unit, Arrays]],
    units: Sequence[tuple[str, Unit]],
    shards: Shards,
    label: str,
) -> int:
    """Run the units that have no shard yet. Return the number of workers that died meanwhile; the unit of each was run again.

    Args:
        cluster: cluster to work on.
        size: resources of a worker.
        work: makes the work; called with the connected Ray module, so that it can find out which files must be sent.
        units: names and units.
        shards: store for the results.
        label: label of the progress bar.

    Raises:
        MissingBackendError: Ray, the cluster, room on it, or a runtime on its machines is missing.
        PtqdError: a unit failed.
    """
    left = [named for named in units if not shards.has(named[0])]
    with progress(label, len(units)) as advance:
        for _ in range(len(units) - len(left)):
            advance()
        if not left:
            return 0
        with joined(cluster) as ray, WorkerPool(ray, work(ray), size, len(left)) as pool:
            for index, arrays in pool.run(len(left), lambda index: left[index][1]):
                shards.write(left[index][0], arrays)
                advance()
            return pool.lost
