"""Units of work on a cluster, each result a shard: what an earlier run finished is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from engines.backends.choice import runtime_name
from engines.bundle import Bundle
from engines.chain_choice import ChainChoice
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.pool import WorkerPool
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.cluster.shards import Arrays, Shards
from engines.progress import progress

Unit = TypeVar("Unit")
Unit_contra = TypeVar("Unit_contra", contravariant=True)


class BundleWork(Protocol[Unit_contra]):
    """Work with the engines of a bundle."""

    @property
    def choice(self) -> ChainChoice: ...
    def open(self, bundle: Bundle, threads: int | None, /) -> Callable[[Unit_contra], Arrays]: ...


@dataclass(frozen=True)
class _OnCopy(Generic[Unit]):
    """The work on the bundle as a worker's machine has it; see `engines.cluster.pool.Work`."""

    copy: FolderCopy
    work: BundleWork[Unit]

    def open(self, threads: int) -> Callable[[Unit], Arrays]:
        return self.work.open(Bundle.open(self.copy.local()), threads)


def complete(
    cluster: Cluster, bundle: Bundle, work: BundleWork[Unit], units: Sequence[tuple[str, Unit]], shards: Shards, label: str
) -> int:
    """Do the units that have no shard yet; the number of workers that died meanwhile, each of which cost its unit once more.

    Args:
        cluster: where.
        bundle: with the engines.
        work: what is done.
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
        with joined(cluster) as ray, _pool(ray, cluster, bundle, work, len(left)) as pool:
            for index, arrays in pool.run(len(left), lambda index: left[index][1]):
                shards.write(left[index][0], arrays)
                advance()
            return pool.lost


def _pool(ray: Any, cluster: Cluster, bundle: Bundle, work: BundleWork[Unit], most: int) -> WorkerPool[Unit, Arrays]:
    size = WorkerSize.of(cluster, runtime_name(bundle, work.choice.runtime))
    return WorkerPool(ray, _OnCopy(FolderCopy.of_bundle(ray, bundle), work), size, most)
