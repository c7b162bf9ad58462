"""The networks of a walk on the workers of a cluster: every step, they are all asked, and the walk waits for the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.observation import Networks, Observed, Observer, StepBatch
from calib.placement import HighPrecision
from engines.backends.choice import mode_of
from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.backends.onnxruntime_session import Provider
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.pool import WorkerPool
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.conditioning import Conditioning
from engines.network import EngineDenoiser
from ptqd_export.stand_in import standing_in


@dataclass(frozen=True)
class WalkWork:
    """How to open the networks of a walk; see `engines.cluster.pool.Work`.

    Attributes:
        target: of the plan.
        provider: that ONNX Runtime measures on.
        high_precision: what is computed in where it is not integers.
        conditioning: of the model.
        guidance: scale w.
        batch: samples of a full batch.
    """

    target: str
    provider: Provider
    high_precision: HighPrecision
    conditioning: Conditioning | None
    guidance: float
    batch: int

    def networks(self, graphs: Mapping[str, Path], reference: str, threads: int | None) -> Networks:
        backend = standing_in(OnnxRuntimeBackend(threads, self.provider, mode_of(self.target, self.provider)), self.high_precision)
        guided = self.guidance != 1.0
        rows = (2 if guided else 1) * self.batch
        opened = {name: EngineDenoiser(backend.open(graph, rows), self.conditioning, guided) for name, graph in graphs.items()}
        return Networks(opened[reference], opened, self.guidance)


@dataclass(frozen=True)
class _OnCopy:
    """The work on graphs as a worker's machine has them, by precision and name."""

    work: WalkWork
    copy: FolderCopy
    graphs: Mapping[str, str]
    reference: str

    def open(self, threads: int) -> Networks:
        folder = self.copy.local()
        return self.work.networks({name: folder / graph for name, graph in self.graphs.items()}, self.reference, threads)


@contextlib.contextmanager
def observing(cluster: Cluster, work: WalkWork, graphs: Mapping[str, Path], reference: str, batches: int) -> Iterator[Observer]:
    """Evaluates the batches of a walk on a cluster, while the block runs.

    Args:
        cluster: where.
        work: what the graphs are run with.
        graphs: by precision, full precision's among them; their folders lie beside each other.
        reference: name of full precision.
        batches: of a step.

    Raises:
        MissingBackendError: Ray, the cluster, or room on it is missing.
    """
    (parent,) = {graph.parent.parent for graph in graphs.values()}
    names = {name: graph.relative_to(parent).as_posix() for name, graph in graphs.items()}
    size = WorkerSize.of(cluster, "onnxruntime-cuda" if work.provider == "CUDA" else "onnxruntime")
    with joined(cluster) as ray:
        on_copy = _OnCopy(work, FolderCopy.of(ray, parent, _with_weights(parent, [*names.values()])), names, reference)
        pool: WorkerPool[StepBatch, Observed]
        with WorkerPool(ray, on_copy, size, batches) as pool:
            yield pool.run


def _with_weights(folder: Path, graphs: Sequence[str]) -> list[str]:
    """The graphs' files, those of their weights with them."""
    return [name for graph in graphs for name in (graph, f"{graph}.data") if (folder / name).is_file()]
