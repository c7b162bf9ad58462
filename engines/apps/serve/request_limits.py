"""The limits of a server: request size, pictures that may wait, and requests per second of a client."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from engines.apps.serve.image_request import Refused

CLIENTS = 10_000
"""Maximum number of clients remembered. Beyond it, the client that has been silent longest is forgotten."""


@dataclass(frozen=True)
class Limits:
    """Limits beyond which requests are refused, with the HTTP status of the refusal.

    Attributes:
        body: bytes per request (413).
        number: pictures per request (400).
        waiting: pictures requested but not yet sent (503).
        rate: requests per second of one client in the long run (429); after a pause, the client may send one second's worth at once.
    """

    body: int
    number: int
    waiting: int
    rate: float


class Rate:
    """A token bucket per client. A request takes one token; `rate` tokens are added per second; a bucket holds at most max(rate, 1).

    Args:
        rate: requests per second.
        clock: returns the time in seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._room = max(rate, 1.0)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, client: str) -> None:
        """Take a token of the client; raise Refused with status 429 if the client has none left."""
        now = self._clock()
        tokens, since = self._buckets.pop(client, (self._room, now))
        tokens = min(self._room, tokens + (now - since) * self._rate)
        self._buckets[client] = (tokens - 1, now) if tokens >= 1 else (tokens, now)
        if len(self._buckets) > CLIENTS:
            del self._buckets[next(iter(self._buckets))]
        if tokens < 1:
            raise Refused(429, f"more than {self._rate:g} requests per second", math.ceil((1 - tokens) / self._rate))


async def bounded(body: AsyncIterator[bytes], most: int) -> bytes:
    """Read a body, but stop once it exceeds `most` bytes.

    Raises:
        Refused: status 413, the body is longer.
    """
    read = bytearray()
    async for piece in body:
        read += piece
        if len(read) > most:
            raise Refused(413, f"the body has more than {most} bytes")
    return bytes(read)
