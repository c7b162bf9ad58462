"""Runs the networks of a walk on the workers of a cluster. At every step the walk waits for all workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calib.quantizers.rules.placement import HighPrecision
from calib.walk.step_networks import BatchEvaluator, StepBatch, StepNetworks, StepOutputs
from engines.backends.base import Backend
from engines.backends.onnxruntime.onnxruntime_session import Provider
from engines.chain.denoiser import is_guided
from engines.chain.norm_guidance import NormGuidance
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.pool import WorkerPool
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.networks.conditioning import Conditioning
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.grouped_engine import GroupGraphs, open_groups
from engines.untrusted.external_data import graph_files
from ptqd_export.measuring.measuring_backend import measuring_backend


@dataclass(frozen=True)
class ClusterTarget:
    """A `MeasuredTarget` that can be sent to the workers."""

    name: str
    provider: Provider
    high_precision: HighPrecision


@dataclass(frozen=True)
class NetworkOpener:
    """How a worker opens the networks of a walk.

    Attributes:
        target: target of the plan.
        conditioning: conditioning of the model.
        guidance: guidance scale w.
        batch: samples in a full batch.
        guidance_patch: side of the patches in which guidance keeps the norm of the conditional output; None if guidance is linear.
    """

    target: ClusterTarget
    conditioning: Conditioning | None
    guidance: float
    batch: int
    guidance_patch: int | None = None

    def networks(self, graphs: Mapping[str, Sequence[GroupGraphs]], reference: str, threads: int | None) -> StepNetworks:
        backend = measuring_backend(self.target, threads)
        opened = {name: self._network(backend, *of_network) for name, of_network in graphs.items()}
        return StepNetworks(opened[reference], opened, self.guidance)

    def _network(self, backend: Backend, whole: GroupGraphs, reusing: GroupGraphs | None = None) -> EngineDenoiser:
        guided, combine = is_guided(self.guidance), NormGuidance.at(self.guidance, self.guidance_patch)
        engine = open_groups(backend, whole, (2 if guided else 1) * self.batch)
        if reusing is None:
            return EngineDenoiser(engine, self.conditioning, guided, combine=combine)
        return CutEngines(engine, self.conditioning, guided, combine=combine, reusing=self._network(backend, reusing))


@dataclass(frozen=True)
class _OnCopy:
    """The graphs on a worker's machine: bounds and names relative to the copied folder, by network. See `engines.cluster.pool.Work`."""

    opener: NetworkOpener
    copy: FolderCopy
    graphs: Mapping[str, Sequence[Sequence[tuple[float, str]]]]
    reference: str

    def open(self, threads: int) -> StepNetworks:
        folder = self.copy.local()
        graphs = {
            name: [[(below, folder / graph) for below, graph in of_groups] for of_groups in of_network]
            for name, of_network in self.graphs.items()
        }
        return self.opener.networks(graphs, self.reference, threads)


@contextlib.contextmanager
def evaluating_on(
    cluster: Cluster, opener: NetworkOpener, graphs: Mapping[str, Sequence[GroupGraphs]], reference: str, batches: int
) -> Iterator[BatchEvaluator]:
    """Evaluate the batches of a walk on a cluster while the `with` block runs.

    Args:
        cluster: cluster to run on.
        opener: opens the networks on a worker.
        graphs: graphs of every network, including full precision; of one at a cut, those that keep features and those that take them. Their
            folders have the same parent.
        reference: name of the full-precision graph.
        batches: number of batches per step.

    Raises:
        MissingBackendError: Ray, the cluster, or room on the cluster is missing.
    """
    (parent,) = {graph.parent.parent for of_network in graphs.values() for of_groups in of_network for _, graph in of_groups}
    names = {
        name: [[(below, graph.relative_to(parent).as_posix()) for below, graph in of_groups] for of_groups in of_network]
        for name, of_network in graphs.items()
    }
    files = [graph for of_network in names.values() for of_groups in of_network for _, graph in of_groups]
    size = WorkerSize.of(cluster, "onnxruntime-cuda" if opener.target.provider == "CUDA" else "onnxruntime")
    with joined(cluster) as ray:
        on_copy = _OnCopy(opener, FolderCopy.of(ray, parent, _with_weights(parent, files)), names, reference)
        pool: WorkerPool[StepBatch, StepOutputs]
        with WorkerPool(ray, on_copy, size, batches) as pool:
            yield pool.run


def _with_weights(folder: Path, graphs: Sequence[str]) -> list[str]:
    """The files of the graphs, including the files of weights that they read."""
    return sorted({file.relative_to(folder).as_posix() for graph in graphs for file in graph_files(folder / graph)})
