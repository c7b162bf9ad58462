"""The limits of a server: request size, pictures that may wait, and requests per second of a client."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from engines.apps.serve.image_request import Refused

RETRY_SECONDS = 5
"""Seconds after which a client may retry a request that a full server refused."""

HELD_BYTES = 2**30
"""Bytes of bodies that a server holds at once."""

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
        held: bytes of all bodies that are being read or whose pictures wait (503).
    """

    body: int
    number: int
    waiting: int
    rate: float
    held: int = HELD_BYTES


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


class Room:
    """Bytes that a server spares for bodies: those being read, and those whose pictures wait.

    Args:
        most: number of bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    def take(self, count: int) -> None:
        """Reserve bytes.

        Raises:
            Refused: fewer bytes are free; status 503.
        """
        if self._taken + count > self._most:
            raise Refused(503, f"requests that wait hold {self._taken} bytes; at most {self._most} may be held", RETRY_SECONDS)
        self._taken += count

    def free(self, count: int) -> None:
        """Give bytes back."""
        self._taken -= count


async def bounded(body: AsyncIterator[bytes], most: int, room: Room) -> bytes:
    """Read a body, but stop once it exceeds `most` bytes. The caller frees the room that it takes.

    Raises:
        Refused: status 413, the body is longer; 503, there is no room for it.
    """
    read = bytearray()
    try:
        async for piece in body:
            if len(read) + len(piece) > most:
                raise Refused(413, f"the body has more than {most} bytes")
            room.take(len(piece))
            read += piece
    except BaseException:
        room.free(len(read))
        raise
    return bytes(read)
