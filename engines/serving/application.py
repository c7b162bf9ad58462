"""The two parts of a server on Ray Serve: a gateway that answers, and replicas that sample batches of what it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from engines.bundle import ModelRecord
from engines.cluster.session import WorkerSize
from engines.serving.gateway import Answer, Asked, Gateway
from engines.serving.image_request import Reader
from engines.serving.items import Item, ItemWork, Picture
from engines.serving.limits import Limits

NAME = "ptqd"
SAMPLER = "sampler"

ATTEMPTS = 20
"""Times that a picture is asked for, a replica ending each time; the pauses between them give Ray a minute to start another."""

SPARE = 100
"""Requests that the gateway takes beyond those that can wait, so that it can refuse them itself."""


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        work: what replicas open.
        model: of the bundle.
        limits: of requests.
        replicas: each with engines of its own.
        size: of a replica.
        batch: pictures that go through the networks at a time.
        batch_wait: seconds that a batch waits for more.
    """

    work: ItemWork
    model: ModelRecord
    limits: Limits
    replicas: int
    size: WorkerSize
    batch: int
    batch_wait: float


def application(serve: Any, settings: Settings) -> Any:
    """What `ray.serve.run` takes."""
    size = settings.size

    class Sampler:
        """One engine bank."""

        def __init__(self) -> None:
            self._sample = settings.work.open(size.cpus)
            self._thread = ThreadPoolExecutor(1)  # so that the replica's loop takes requests meanwhile

        @serve.batch(max_batch_size=settings.batch, batch_wait_timeout_s=settings.batch_wait)  # type: ignore[untyped-decorator]
        async def sample(self, items: list[Item]) -> list[Picture]:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._sample, items)

    class Entrance:
        """The gateway, where requests come in."""

        def __init__(self, sampler: Any) -> None:
            reader = Reader(settings.model, settings.limits.number)
            self._gateway = Gateway(reader, settings.limits, asking(sampler), running_replicas)

        async def __call__(self, request: Any) -> Any:
            client = request.client.host if request.client else ""
            return _response(await self._gateway(Asked(request.method, request.url.path, client, request.stream())))

    resources = {"num_cpus": size.cpus, "num_gpus": size.gpus}
    samplers = serve.deployment(
        Sampler,
        name=SAMPLER,
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.batch,  # one batch is collected while another is sampled
        health_check_period_s=1,
        ray_actor_options=resources,
    )
    entrance = serve.deployment(
        Entrance, name="entrance", max_ongoing_requests=settings.limits.waiting + SPARE, ray_actor_options={"num_cpus": 0}
    )
    return entrance.bind(samplers.bind())


def asking(sampler: Any) -> Any:
    """Asks a replica for the picture of an item, and another one where it ended: nothing that was asked for is lost."""
    from engines.cluster.session import import_ray

    deaths = import_ray().exceptions.RayActorError

    async def sample(item: Item, again: Callable[[], None]) -> Picture:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                picture: Picture = await sampler.sample.remote(item)
                return picture
            except deaths:
                if attempt == ATTEMPTS:
                    raise
                again()
                await asyncio.sleep(0.3 * attempt)
        raise AssertionError

    return sample


async def running_replicas() -> int:
    """Samplers that take requests."""
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    application = status.applications.get(NAME)
    states = {} if application is None else application.deployments[SAMPLER].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def _response(answer: Answer) -> Any:
    from starlette.responses import Response

    return Response(answer.content, answer.status, dict(answer.headers), answer.media_type)
