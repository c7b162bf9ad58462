"""Units of work on a cluster, each result a shard: what an earlier run finished is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from engines.cluster.pool import Work, WorkerPool
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.cluster.shards import Arrays, Shards
from engines.host.progress import progress

Unit = TypeVar("Unit")


def complete(
    cluster: Cluster,
    size: WorkerSize,
    work: Callable[[Any], Work[Unit, Arrays]],
    units: Sequence[tuple[str, Unit]],
    shards: Shards,
    label: str,
) -> int:
    """Do the units that have no shard yet; the number of workers that died meanwhile, each of which cost its unit once more.

    Args:
        cluster: where.
        size: of a worker.
        work: what is done, once it is known which files have to travel; called with Ray, connected.
        units: by name.
        shards: where the results go.
        label: of the progress bar.

    Raises:
        MissingBackendError: Ray, the cluster, or room on it is missing; or a runtime on its machines.
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
