"""A server in this process: requests go through the gateway and its batches to the engines, without Ray."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engines.apps.serve.application import in_groups
from engines.apps.serve.gateway import Asked, Gateway
from engines.apps.serve.image_request import Reader, body_bytes
from engines.apps.serve.pages.answer import Answer
from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.item_sampler import ItemWork
from engines.apps.serve.sampling.items import Item, ServedPicture
from engines.apps.serve.sampling.lora_folder import LoraFolder
from engines.cluster.folder_copy import FolderCopy
from engines.networks.chain_choice import ChainChoice


class Server:
    """A server of a bundle, whose engines stay open."""

    def __init__(self, folder: Path, loras: Path | None = None, batch: int = 4) -> None:
        offered = LoraFolder() if loras is None else LoraFolder.of(loras)
        work = ItemWork(FolderCopy(folder, {}, {}), ChainChoice(), batch, offered)
        self._sampler, bundle = work.open(1), work.bundle()
        limits = Limits(body_bytes(bundle), 8, 64, 1e6)
        self._gateway = Gateway(Reader(bundle, limits.number, work.choice, offered), limits, self._picture, self._running, {})
        self._waiting: list[tuple[Item, asyncio.Future[ServedPicture]]] = []
        self.batches: list[int] = []

    def answers(self, *bodies: Any) -> list[Answer]:
        """Answer requests that arrive together, whose pictures form one batch."""

        async def together() -> list[Answer]:
            return await asyncio.gather(*(self._gateway(Asked("POST", "/images", "one", _pieces(body))) for body in bodies))

        return asyncio.run(together())

    def pictures(self, body: Any) -> list[bytes]:
        """Return the pictures of one request."""
        return pictures(self.answers(body)[0])

    def refusal(self, body: Any) -> tuple[int, str]:
        """Return status and message of a refused request."""
        (answer,) = self.answers(body)
        return answer.status, json.loads(answer.content)["error"]

    async def _picture(self, item: Item) -> ServedPicture:
        mine: asyncio.Future[ServedPicture] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, mine))
        await asyncio.sleep(0.01)
        if not mine.done():
            await self._sample()
        return await mine

    async def _sample(self) -> None:
        taken, self._waiting = self._waiting, []
        for (_, future), found in zip(taken, await in_groups([item for item, _ in taken], self._group), strict=True):
            if isinstance(found, BaseException):
                future.set_exception(found)
            else:
                future.set_result(found)

    async def _group(self, items: list[Item]) -> list[ServedPicture]:
        self.batches.append(len(items))
        return self._sampler(items)

    @staticmethod
    async def _running() -> int:
        return 1


def pictures(answer: Answer) -> list[bytes]:
    """Return the pictures of an answer."""
    assert answer.status == 200, answer.content
    if answer.media_type == "image/png":
        return [answer.content]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return [archive.read(name) for name in archive.namelist()]


async def _pieces(body: Any) -> AsyncIterator[bytes]:
    yield body if isinstance(body, bytes) else json.dumps(body).encode()
