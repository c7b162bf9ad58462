"""`ptqd-run serve`: serves a bundle over HTTP until it is stopped."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.apps.pictures.images import check_drawable
from engines.apps.serve.application import NAME, Settings, application
from engines.apps.serve.pages.openapi import Served
from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.item_sampler import ItemWork
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.backends.choice import runtime_name
from engines.bundle.bundle import Bundle
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.session import Cluster, WorkerSize, joined
from engines.errors import MissingBackendError, PtqdError
from engines.networks.chain_choice import AUTO, ChainChoice

Tell = Callable[[str], object]


@dataclass(frozen=True)
class ServeRequest:
    """What to serve, and how.

    Attributes:
        bundle: bundle folder.
        limits: request limits.
        host: address to listen on.
        port: port to listen on.
        replicas: number of replicas, each with its own engines.
        batch_size: maximum number of pictures that the networks process at once.
        batch_wait: seconds that a batch waits for more pictures.
        chain: how to sample.
        cluster: cluster to serve on.
        loras: folder with the LoRAs that requests may name; None offers none.
    """

    bundle: Path
    limits: Limits
    host: str
    port: int
    replicas: int
    batch_size: int
    batch_wait: float
    chain: ChainChoice = field(default_factory=ChainChoice)
    cluster: Cluster = field(default_factory=Cluster)
    loras: Path | None = None


def serve_bundle(request: ServeRequest, tell: Tell, waiting: Tell) -> None:
    """Serve until interrupted.

    Args:
        request: what to serve, and how.
        tell: called with a line for the user, once the server takes requests.
        waiting: called with what the server waits for while it starts.

    Raises:
        UsageError: the request does not fit the bundle.
        MissingBackendError: Ray Serve, the cluster, or room on it is missing.
        PtqdError: the server does not start.
    """
    with serving(request, waiting) as address, contextlib.suppress(KeyboardInterrupt):
        tell(f"serving {request.bundle} at {address} (a form) and {address}/docs (the API); press Ctrl-C to stop")
        threading.Event().wait()


@contextlib.contextmanager
def serving(request: ServeRequest, waiting: Tell = lambda _line: None) -> Iterator[str]:
    """Serve while the block runs; yield the address. `waiting` is called with what the start waits for."""
    bundle = Bundle.open(request.bundle, request.chain.size)
    check_drawable(bundle.manifest.model.image_shape, mend="write them to a file with `ptqd-run sample --format npz`")
    loras = LoraFolder() if request.loras is None else LoraFolder.of(request.loras)
    for precision in set(request.chain.chosen(bundle).step_precisions):
        bundle.verified_graphs(precision)
    size = WorkerSize.of(request.cluster, runtime_name(bundle, request.chain.runtime))
    serve = _import_serve()
    waiting("starting Ray" if not request.cluster.address else f"joining Ray at {request.cluster.address}")
    with joined(request.cluster) as ray:
        if size.room(ray) < request.replicas:
            raise MissingBackendError(
                "The cluster has no room for the replicas.",
                found=f"room for {size.room(ray)} of {size.cpus} CPUs and {size.gpus} GPUs each",
                expected=f"room for {request.replicas}",
                mend="lower --ray-cpus or --replicas",
            )
        waiting("sharing the bundle with the workers")
        lora_copy = FolderCopy.of(ray, loras.folder, loras.files) if loras.files else None
        work = ItemWork(FolderCopy.of_bundle(ray, bundle), request.chain, request.batch_size, loras, lora_copy)
        settings = Settings(work, _served(request, bundle, loras), request.replicas, size, request.batch_size, request.batch_wait)
        waiting(f"opening engines on {request.replicas} replica{'s' * (request.replicas > 1)}")
        try:
            _start(serve, request, settings)
            yield f"http://{request.host}:{request.port}"
        finally:
            serve.shutdown()


def _served(request: ServeRequest, bundle: Bundle, loras: LoraFolder) -> Served:
    name = request.chain.schedule
    sampler = bundle.schedule(name).sampler
    precision = "" if request.chain.precision == AUTO else f", {request.chain.precision}"
    schedule = f"{name} schedule: {sampler.name}, {len(bundle.schedule(name).steps)} steps{precision}"
    return Served.of(request.bundle.resolve().name, schedule, bundle, request.chain, request.limits, tuple(loras.entries))


def _start(serve: Any, request: ServeRequest, settings: Settings) -> None:
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": request.host, "port": request.port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(application(serve, settings), name=NAME)
    except RuntimeError as error:
        raise PtqdError("The server does not start.", found=error, mend="check that the port is free, and look into Ray's logs") from error


def _import_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise MissingBackendError("Ray Serve is not installed.", found=str(error), mend="pip install 'ptqd-export[ray]'") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return serve
