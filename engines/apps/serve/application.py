"""The two parts of a server on Ray Serve: a gateway that answers requests and forms batches, and replicas that sample the batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from engines.apps.serve.gateway import Asked, Gateway
from engines.apps.serve.image_request import Reader
from engines.apps.serve.pages.answer import Answer
from engines.apps.serve.pages.openapi import Served, openapi
from engines.apps.serve.pages.page_files import page_answers
from engines.apps.serve.sampling.item_sampler import ItemWork
from engines.apps.serve.sampling.items import Item, ServedPicture, by_key
from engines.cluster.lost_device import ending_with_its_device
from engines.cluster.session import WorkerSize, import_ray
from engines.errors import PtqdError

NAME = "ptqd"
SAMPLER = "sampler"

AHEAD = 2
"""Batches that a replica holds at once: one waits while the other is sampled. Other pictures wait in the gateway until a batch is full."""

ATTEMPTS = 20
"""Attempts at a batch when its replica dies each time. The pauses between attempts give Ray a minute to start another replica."""

SPARE = 100
"""Requests that the gateway accepts beyond those that may wait, so that it can refuse them itself."""


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        work: what each replica opens.
        served: what the server says of itself, with the model and the request limits.
        replicas: number of replicas, each with its own engines.
        size: resources of each replica.
        batch: maximum number of pictures that the networks process at once.
        batch_wait: seconds that a batch waits for more pictures.
    """

    work: ItemWork
    served: Served
    replicas: int
    size: WorkerSize
    batch: int
    batch_wait: float


def application(serve: Any, settings: Settings) -> Any:
    """Return the application for `ray.serve.run`."""
    size = settings.size

    class Sampler:
        """A replica with one engine bank."""

        def __init__(self) -> None:
            self._sample = settings.work.open(size.cpus)
            self._thread = ThreadPoolExecutor(1)  # keeps the replica's event loop free while it samples

        async def sample(self, items: list[Item]) -> list[ServedPicture]:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._sampled, items)

        def _sampled(self, items: list[Item]) -> list[ServedPicture]:
            with ending_with_its_device():
                return self._sample(items)

    class Entrance:
        """The gateway, which receives requests and forms batches."""

        def __init__(self, sampler: Any) -> None:
            self._sampler = sampler
            served = settings.served
            reader = Reader(settings.work.bundle(), served.limits.number, settings.work.choice, settings.work.loras)
            pages = page_answers(json.dumps(openapi(served), indent=1).encode())
            self._gateway = Gateway(reader, served.limits, self.picture, running_replicas, pages)

        async def __call__(self, request: Any) -> Any:
            client = request.client.host if request.client else ""
            return _response(await self._gateway(Asked(request.method, request.url.path, client, request.stream())))

        @serve.batch(  # type: ignore[untyped-decorator]  # Ray leaves it untyped
            max_batch_size=settings.batch,
            batch_wait_timeout_s=settings.batch_wait,
            max_concurrent_batches=AHEAD * settings.replicas,
        )
        async def _batch(self, items: list[Item]) -> list[ServedPicture | BaseException]:
            return await in_groups(items, lambda group: sampled(self._sampler, group))

        async def picture(self, item: Item) -> ServedPicture:
            found: ServedPicture | BaseException = await self._batch(item)
            if isinstance(found, BaseException):
                raise found
            return found

    resources = {"num_cpus": size.cpus, "num_gpus": size.gpus}
    samplers = serve.deployment(
        Sampler,
        name=SAMPLER,
        num_replicas=settings.replicas,
        max_ongoing_requests=AHEAD,
        health_check_period_s=1,
        ray_actor_options=resources,
    )
    entrance = serve.deployment(
        Entrance, name="entrance", max_ongoing_requests=settings.served.limits.waiting + SPARE, ray_actor_options={"num_cpus": 0}
    )
    return entrance.bind(samplers.bind())


async def in_groups(
    items: list[Item], sample: Callable[[list[Item]], Awaitable[list[ServedPicture]]]
) -> list[ServedPicture | BaseException]:
    """Sample the items that can share a network call together. Return each item's picture, or what its group failed with."""
    groups = by_key(items)
    answers = await asyncio.gather(*map(sample, groups), return_exceptions=True)
    found: dict[int, ServedPicture | BaseException] = {}
    for group, answer in zip(groups, answers, strict=True):
        pictures: Sequence[ServedPicture | BaseException] = [answer] * len(group) if isinstance(answer, BaseException) else answer
        found |= {id(item): one for item, one in zip(group, pictures, strict=True)}
    return [found[id(item)] for item in items]


async def sampled(sampler: Any, items: list[Item]) -> list[ServedPicture]:
    """Request the pictures of a batch from a replica, and from another one if it dies, so that no request is lost."""
    errors = import_ray().exceptions
    for attempt in range(1, ATTEMPTS + 1):
        try:
            pictures: list[ServedPicture] = await sampler.sample.remote(items)
            return [replace(picture, attempts=attempt) for picture in pictures]
        except errors.RayActorError:
            if attempt == ATTEMPTS:
                raise
            await asyncio.sleep(0.3 * attempt)
        except errors.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, PtqdError) else error) from error
    raise AssertionError


async def running_replicas() -> int:
    """Return the number of samplers that take requests."""
    from ray import serve

    status = await asyncio.to_thread(serve.status)
    application = status.applications.get(NAME)
    states = {} if application is None else application.deployments[SAMPLER].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def _response(answer: Answer) -> Any:
    from starlette.responses import Response

    return Response(answer.content, answer.status, dict(answer.headers), answer.media_type)
