"""The Ray cluster to work on: the one at a given address, or a temporary cluster of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engines.backends.choice import ON_CPU, RuntimeName
from engines.errors import MissingBackendError
from engines.host.machine import cores

LOCAL = "local"
LOCAL_STORE = 256 * 2**20
"""Bytes of shared memory through which a cluster of this machine alone passes results."""

LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # send no usage statistics
    "RAY_worker_niceness": "0",  # the workers are the machine's main job; by default Ray lowers their priority
}


@dataclass(frozen=True)
class Cluster:
    """The cluster to work on.

    Attributes:
        address: Ray address of the cluster; empty means RAY_ADDRESS or, if that is not set, a cluster of this machine alone.
        cpus: CPUs per worker; None means 1 with a GPU, else as many as this process may use, so that one worker equals a run without Ray.
    """

    address: str = ""
    cpus: int | None = None


@dataclass(frozen=True)
class WorkerSize:
    """Resources of a machine that one worker takes."""

    cpus: int
    gpus: int

    @classmethod
    def of(cls, cluster: Cluster, runtime: RuntimeName) -> WorkerSize:
        """Return the size for a runtime. A worker that does not run on the CPU has its own GPU, and its host has little to do."""
        on_gpu = runtime not in ON_CPU
        return cls(cluster.cpus or (1 if on_gpu else cores()), int(on_gpu))

    def room(self, ray: Any) -> int:
        """Return how many workers fit on the machines of the cluster.

        Raises:
            MissingBackendError: no worker fits.
        """
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(self._fit(resources) for resources in machines)
        if not room:
            raise MissingBackendError(
                "No machine of the cluster has room for a worker.",
                found="; ".join(f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in machines),
                expected=f"{self.cpus} CPUs and {self.gpus} GPUs on one machine",
                mend="lower --ray-cpus, or add machines with GPUs",
            )
        return room

    def _fit(self, resources: dict[str, float]) -> int:
        by_cpu = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpu, int(resources.get("GPU", 0) // self.gpus)) if self.gpus else by_cpu


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Connect to Ray while the block runs, and yield Ray's module. An existing connection is used and kept.

    Raises:
        MissingBackendError: Ray is not installed, or there is no cluster at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    try:
        _connect(ray, cluster.address or os.environ.get("RAY_ADDRESS") or LOCAL)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address == LOCAL:
        for name, value in LOCAL_SETTINGS.items():
            os.environ.setdefault(name, value)
        options |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": LOCAL_STORE}
    try:
        ray.init(address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise MissingBackendError(
            "There is no Ray cluster to join.",
            found=f"{address}: {error}",
            expected="the address of a running cluster, such as 10.0.0.1:6379, or auto on one of its machines",
            mend="start one with `ray start --head`, or omit the address to work on this machine alone",
        ) from error


def import_ray() -> Any:
    """Return Ray's module; raise MissingBackendError if Ray is not installed."""
    try:
        import ray
    except ImportError as error:
        raise MissingBackendError("Ray is not installed.", found=str(error), mend="pip install 'ptqd-export[ray]'") from error
    return ray
