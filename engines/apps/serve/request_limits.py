"""What one server takes on: sizes of requests, how many wait, how often a client may ask."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from engines.apps.serve.image_request import Refused

CLIENTS = 10_000
"""Clients that are remembered; beyond, those that have not asked for longest are forgotten."""


@dataclass(frozen=True)
class Limits:
    """Beyond them, requests are refused.

    Attributes:
        body: bytes of a request (413).
        number: pictures of a request (400).
        waiting: pictures that are asked for and not yet sent (503).
        rate: requests a second of one client (429), in the long run: after a pause it may ask for one second's at once.
    """

    body: int
    number: int
    waiting: int
    rate: float


class Rate:
    """A bucket of tokens for each client: one token a request, `rate` new ones a second, and room for a second's, or one.

    Args:
        rate: a second.
        clock: in seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._room = max(rate, 1.0)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> None:
        """Raises Refused with 429 where the client has no token left."""
        now = self._clock()
        tokens, since = self._buckets.pop(client, (self._room, now))
        tokens = min(self._room, tokens + (now - since) * self._rate)
        self._buckets[client] = (tokens - 1, now) if tokens >= 1 else (tokens, now)
        if len(self._buckets) > CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        if tokens < 1:
            raise Refused(429, f"more than {self._rate:g} requests a second", math.ceil((1 - tokens) / self._rate))


async def bounded(body: AsyncIterator[bytes], most: int) -> bytes:
    """A body, read no further than it may be long.

    Raises:
        Refused: with 413, it is longer.
    """
    read = bytearray()
    async for piece in body:
        read += piece
        if len(read) > most:
            raise Refused(413, f"the body has more than {most} bytes")
    return bytes(read)
