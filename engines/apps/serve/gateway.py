"""The server's answers: it checks the limits, then returns pictures from wherever they are sampled. Uses no web framework and no Ray."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from engines.apps.serve.image_request import Reader, Refused, refusing
from engines.apps.serve.pages.answer import Answer
from engines.apps.serve.request_limits import RETRY_SECONDS, Limits, Rate, Room, bounded
from engines.apps.serve.sampling.items import Item, ServedPicture
from engines.apps.serve.server_metrics import Metrics

IMAGES, HEALTH, METRICS = "/images", "/health", "/metrics"
METHODS = {IMAGES: "POST", HEALTH: "GET", METRICS: "GET"}


@dataclass(frozen=True)
class Asked:
    """A request as received.

    Attributes:
        client: address of the client.
        body: the body in pieces.
    """

    method: str
    path: str
    client: str
    body: AsyncIterator[bytes]


class Gateway:
    """Answers requests.

    Args:
        reader: reads request bodies.
        limits: request limits, see `Limits`.
        sample: samples the picture of an item.
        replicas: returns the number of running samplers.
        pages: answers to GET requests for other paths.
    """

    def __init__(
        self,
        reader: Reader,
        limits: Limits,
        sample: Callable[[Item], Awaitable[ServedPicture]],
        replicas: Callable[[], Awaitable[int]],
        pages: Mapping[str, Answer],
    ) -> None:
        self._reader = reader
        self._limits = limits
        self._sample = sample
        self._replicas = replicas
        self._pages = pages
        self._methods = {**METHODS, **dict.fromkeys(pages, "GET")}
        self._rate = Rate(limits.rate, time.monotonic)
        self._room = Room(limits.held)
        self._metrics = Metrics()
        self._waiting = 0

    async def __call__(self, asked: Asked) -> Answer:
        begin = time.monotonic()
        try:
            answer = await self._answer(asked)
        except Refused as refusal:
            headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
            answer = Answer(refusal.status, _json(error=str(refusal)), headers=headers)
        except Exception as error:
            answer = Answer(500, _json(error=f"the picture could not be sampled: {error}"))
        if asked.path == IMAGES:
            self._metrics.requests.labels(str(answer.status)).inc()
            self._metrics.seconds.observe(time.monotonic() - begin)
        return answer

    async def _answer(self, asked: Asked) -> Answer:
        if asked.path not in self._methods:
            raise Refused(404, f"there is no {asked.path}; the paths are {', '.join(self._methods)}")
        if asked.method != self._methods[asked.path]:
            raise Refused(405, f"{asked.path} accepts only {self._methods[asked.path]}")
        if asked.path in self._pages:
            return self._pages[asked.path]
        if asked.path == HEALTH:
            return await self._health()
        if asked.path == METRICS:
            return Answer(200, self._metrics.text(), "text/plain; version=0.0.4")
        return await self._images(asked)

    async def _health(self) -> Answer:
        replicas = await self._replicas()
        status = "ok" if replicas else "no replica is running"
        return Answer(200 if replicas else 503, _json(status=status, replicas=replicas, waiting=self._waiting))

    async def _images(self, asked: Asked) -> Answer:
        self._rate.take(asked.client)
        body = await bounded(asked.body, self._limits.body, self._room)
        try:
            items = self._accepted(body)
        except BaseException:
            self._room.free(len(body))
            raise
        sampled = [asyncio.ensure_future(self._counted(item)) for item in items]
        asyncio.gather(*sampled, return_exceptions=True).add_done_callback(lambda _: self._room.free(len(body)))
        with refusing():
            pictures = await asyncio.gather(*map(asyncio.shield, sampled))
        self._metrics.pictures.inc(len(pictures))
        for picture in pictures:
            self._metrics.batch.observe(picture.batch)
            self._metrics.again.inc(picture.attempts - 1)
        return _packed(items, pictures)

    def _accepted(self, body: bytes) -> list[Item]:
        """Return the items of a request, which wait from now on."""
        items = self._reader.items(body)
        if self._waiting + len(items) > self._limits.waiting:
            raise Refused(503, f"{self._waiting} pictures are waiting; at most {self._limits.waiting} may wait", RETRY_SECONDS)
        self._wait(len(items))
        return items

    async def _counted(self, item: Item) -> ServedPicture:
        """Sample an item, which counts as waiting until its picture is done: even if another of its request fails or the client leaves."""
        try:
            return await self._sample(item)
        finally:
            self._wait(-1)

    def _wait(self, more: int) -> None:
        self._waiting += more
        self._metrics.waiting.set(self._waiting)


def _packed(items: Sequence[Item], pictures: Sequence[ServedPicture]) -> Answer:
    """Return one picture as it is, or several in a zip archive under the names that `ptqd-run sample` gives them."""
    if len(pictures) == 1:
        return Answer(200, pictures[0].png, "image/png")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for item, picture in zip(items, pictures, strict=True):
            archive.writestr(f"{item.number:08d}.png", picture.png)
    return Answer(200, file.getvalue(), "application/zip")


def _json(**content: object) -> bytes:
    return json.dumps(content).encode()
