"""A Ray cluster to work on: joined where it has an address, else made of this machine for as long as the work takes."""

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
"""Bytes of shared memory that a cluster of this machine alone passes results through."""

LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it tells nobody about itself
    "RAY_worker_niceness": "0",  # its workers are what the machine is for: Ray would let everything else go first
}


@dataclass(frozen=True)
class Cluster:
    """Where to work.

    Attributes:
        address: of the cluster, as Ray takes it; empty is RAY_ADDRESS, and without it a cluster of this machine alone.
        cpus: of one worker; None is as many as this process may use, so that one worker does what a run without Ray does.
    """

    address: str = ""
    cpus: int | None = None


@dataclass(frozen=True)
class WorkerSize:
    """What one worker takes of a machine."""

    cpus: int
    gpus: int

    @classmethod
    def of(cls, cluster: Cluster, runtime: RuntimeName) -> WorkerSize:
        """Whatever does not run on the CPU has a GPU of its own; the host then has little to do."""
        on_gpu = runtime not in ON_CPU
        return cls(cluster.cpus or (1 if on_gpu else cores()), int(on_gpu))

    def room(self, ray: Any) -> int:
        """How many workers the machines of the cluster have room for.

        Raises:
            MissingBackendError: none.
        """
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(self._fit(resources) for resources in machines)
        if not room:
            raise MissingBackendError(
                "No machine of the cluster has room for a worker.",
                found="; ".join(f"{each.get('CPU', 0):g} CPUs, {each.get('GPU', 0):g} GPUs" for each in machines),
                expected=f"{self.cpus} CPUs and {self.gpus} GPUs on one machine",
                mend="give workers less with --ray-cpus, or add machines with GPUs",
            )
        return room

    def _fit(self, resources: dict[str, float]) -> int:
        by_cpu = int(resources.get("CPU", 0) // self.cpus)
        return min(by_cpu, int(resources.get("GPU", 0) // self.gpus)) if self.gpus else by_cpu


@contextlib.contextmanager
def joined(cluster: Cluster) -> Iterator[Any]:
    """Ray's module, connected while the block runs; a connection that is there already is used and kept.

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
            mend="start one with `ray start --head`, or leave the address out to work on this machine alone",
        ) from error


def import_ray() -> Any:
    """Raises MissingBackendError where Ray is not installed."""
    try:
        import ray
    except ImportError as error:
        raise MissingBackendError("Ray is not installed.", found=str(error), mend="pip install 'ptqd-export[ray]'") from error
    return ray
