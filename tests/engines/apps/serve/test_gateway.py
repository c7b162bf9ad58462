"""What a server answers, with samplers that are functions here."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from engines.apps.serve.gateway import Asked, Gateway
from engines.apps.serve.image_request import Reader
from engines.apps.serve.pages.answer import Answer
from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.items import Item, ServedPicture
from engines.bundle.bundle import Bundle
from engines.errors import UsageError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

LIMITS = Limits(body=200, number=4, waiting=6, rate=1000)

Sample = Callable[[Item], Awaitable[ServedPicture]]


async def echo(item: Item) -> ServedPicture:
    await asyncio.sleep(0)
    return ServedPicture(repr((item.seed, item.number, item.row)).encode(), 2)


Make = Callable[..., Gateway]


@pytest.fixture
def gateway(tiny: TinyBundle) -> Make:
    def made(
        sample: Sample = echo,
        limits: Limits = LIMITS,
        replicas: int = 1,
        bundle: TinyBundle = tiny,
        pages: Mapping[str, Answer] = MappingProxyType({}),
    ) -> Gateway:
        async def running() -> int:
            return replicas

        return Gateway(Reader(Bundle.open(bundle.folder), limits.number), limits, sample, running, pages)

    return made


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(body), 50):
        yield body[begin : begin + 50]


def asked(body: Any = b"", method: str = "POST", path: str = "/images", client: str = "one") -> Asked:
    return Asked(method, path, client, pieces(body if isinstance(body, bytes) else json.dumps(body).encode()))


def answers(of: Gateway, *requests: Asked) -> list[Answer]:
    async def together() -> list[Answer]:
        return await asyncio.gather(*(of(request) for request in requests))

    return asyncio.run(together())


def test_one_picture_comes_as_it_is_and_several_in_an_archive(gateway: Make) -> None:
    one, several = answers(gateway(), asked({"seed": 7, "class": 2}), asked({"seed": 8, "class": 1, "num": 3}))
    assert (one.status, one.media_type, one.content) == (200, "image/png", b"(7, 0, 2)")
    assert (several.status, several.media_type) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "00000000.png": b"(8, 0, 1)",
            "00000001.png": b"(8, 1, 1)",
            "00000002.png": b"(8, 2, 1)",
        }


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (asked(b"{"), 400, "The body is not JSON. found: line 1, column 2"),
        (asked(b"[1]"), 400, "The body is not a JSON object. found: a list"),
        (asked(b'{"seed": 1, "seed": 2}'), 400, 'The body contains a key twice. found: "seed"'),
        (asked(b'{"seed": 1, "class": null, "num": 1, "class": 2}'), 400, 'The body contains a key twice. found: "class"'),
        (asked(b'{"seed": NaN}'), 400, "The body contains NaN"),
        (asked({"seed": 1.0}), 400, "seed: Input should be a valid integer"),
        (asked({"seed": True}), 400, "seed: Input should be a valid integer"),
        (asked({}), 400, "seed: Field required"),
        (asked({"seed": -1}), 400, "seed: Input should be greater than or equal to 0"),
        (asked({"seed": 2**64}), 400, "seed: Input should be less than"),
        (asked({"seed": "1"}), 400, "seed: Input should be a valid integer"),
        (asked({"seed": 1, "steps": 3}), 400, "steps: Extra inputs are not permitted"),
        (asked({"seed": 1, "num": 5}), 400, "num: 5 pictures requested; at most 4 are allowed"),
        (asked({"seed": 1, "class": 3}), 400, "A class is out of range. found: 3; expected: 0 to 2"),
        (asked({"seed": 1, "prompt": "a cat"}), 400, "The model takes no prompts."),
        (asked({"seed": 1, "prompt": "x" * 200}), 413, "the body has more than 200 bytes"),
        (asked(path="/other"), 404, "there is no /other"),
        (asked(method="GET"), 405, "/images accepts only POST"),
    ],
)
def test_wrong_requests_are_told_why(gateway: Make, request_: Asked, status: int, message: str) -> None:
    (answer,) = answers(gateway(), Asked(request_.method, request_.path, request_.client, request_.body))
    assert answer.status == status
    assert message in json.loads(answer.content)["error"]


def test_classes_of_a_model_without_are_refused(gateway: Make, tiny_unconditional: TinyBundle) -> None:
    (answer,) = answers(gateway(bundle=tiny_unconditional), asked({"seed": 1, "class": 0}))
    assert (answer.status, json.loads(answer.content)["error"]) == (
        400, "The model is unconditional. found: classes; expected: no classes",
    )  # fmt: skip


def test_what_a_replica_finds_wrong_with_a_request_is_told_its_client(gateway: Make) -> None:
    async def refuse(_item: Item) -> ServedPicture:
        raise UsageError("The LoRA fits nothing.", found="a LoRA")

    (answer,) = answers(gateway(refuse), asked({"seed": 1}))
    assert (answer.status, json.loads(answer.content)["error"]) == (400, "The LoRA fits nothing. found: a LoRA")


def test_first_is_the_number_of_the_first_picture(gateway: Make) -> None:
    one, several = answers(gateway(), asked({"seed": 8, "class": 1, "first": 6}), asked({"seed": 8, "class": 1, "first": 5, "num": 2}))
    assert one.content == b"(8, 6, 1)"
    with zipfile.ZipFile(io.BytesIO(several.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"00000005.png": b"(8, 5, 1)", "00000006.png": b"(8, 6, 1)"}


def test_the_earlier_name_of_num_is_accepted_but_not_both(gateway: Make) -> None:
    old, both = answers(gateway(), asked({"seed": 8, "number": 2}), asked({"seed": 8, "num": 2, "number": 2}))
    assert (old.status, old.media_type) == (200, "application/zip")
    assert both.status == 400


def test_pages_answer_only_get(gateway: Make) -> None:
    page = Answer(200, b"hello", "text/html")
    server = gateway(pages={"/": page})
    found, refused = answers(server, asked(method="GET", path="/"), asked(method="POST", path="/"))
    assert found == page
    assert (refused.status, json.loads(refused.content)["error"]) == (405, "/ accepts only GET")


def test_no_more_wait_than_may(gateway: Make) -> None:
    several = {"seed": 1, "class": 0, "num": 3}
    found = answers(gateway(), *(asked(several) for _ in range(3)))
    assert [answer.status for answer in found] == [200, 200, 503]
    assert found[2].headers == {"Retry-After": "5"}
    server = gateway()
    for _ in range(3):
        assert [answer.status for answer in answers(server, asked(several), asked(several))] == [200, 200]


def test_waiting_requests_hold_no_more_bytes_than_they_may(gateway: Make) -> None:
    server = gateway(limits=replace(LIMITS, held=100))
    body = json.dumps({"seed": 1, "class": 0}).encode().ljust(60)
    for _ in range(3):  # the bytes come back, also those of refused requests
        found = answers(server, asked(body), asked(body), asked(b"x" * 300, client="other"), asked(b"{"))
        assert [answer.status for answer in found] == [200, 503, 503, 400]
        assert found[1].headers == {"Retry-After": "5"}
        assert answers(server, asked(body))[0].status == 200


def test_each_client_has_a_rate_of_its_own(gateway: Make) -> None:
    server = gateway(limits=Limits(200, 4, 600, rate=2))
    found = answers(server, *(asked({"seed": 1}) for _ in range(3)), asked({"seed": 1}, client="other"))
    assert [answer.status for answer in found] == [200, 200, 429, 200]
    assert found[2].headers == {"Retry-After": "1"}


def test_a_failure_is_told_and_leaves_nobody_waiting(gateway: Make) -> None:
    async def fail(_item: Item) -> ServedPicture:
        raise RuntimeError("no more memory")

    server = gateway(fail)
    for _ in range(9):
        (answer,) = answers(server, asked({"seed": 1}))
        assert (answer.status, json.loads(answer.content)["error"]) == (500, "the picture could not be sampled: no more memory")
    (health,) = answers(server, asked(method="GET", path="/health"))
    assert json.loads(health.content) == {"status": "ok", "replicas": 1, "waiting": 0}


def test_pictures_still_sampled_count_after_a_sibling_failed(gateway: Make) -> None:
    """Whatever fails, never are more pictures sampled than may wait."""
    running, most = 0, 0

    async def sample(item: Item) -> ServedPicture:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        try:
            await asyncio.sleep(0)
            if item.number == 0:
                raise RuntimeError("no more memory")
            await asyncio.sleep(0.05)
            return ServedPicture(b"", 1)
        finally:
            running -= 1

    async def failing_again_and_again() -> list[int]:
        server = gateway(sample)
        return [(await server(asked({"seed": 1, "class": 0, "num": 3}))).status for _ in range(9)]

    statuses = asyncio.run(failing_again_and_again())
    assert statuses[:2] == [500, 500]
    assert 503 in statuses
    assert most <= LIMITS.waiting


def test_health_is_that_of_the_replicas(gateway: Make) -> None:
    (answer,) = answers(gateway(replicas=0), asked(method="GET", path="/health"))
    assert (answer.status, json.loads(answer.content)["status"]) == (503, "no replica is running")


def test_metrics_count_what_was_answered(gateway: Make) -> None:
    async def twice(item: Item) -> ServedPicture:
        return replace(await echo(item), attempts=2)

    server = gateway(twice)
    answers(server, asked({"seed": 1, "num": 2}), asked({"seed": 1, "class": 9}))
    (page,) = answers(server, asked(method="GET", path="/metrics"))
    lines = page.content.decode().splitlines()
    for line in (
        'ptqd_requests_total{status="200"} 1.0',
        'ptqd_requests_total{status="400"} 1.0',
        "ptqd_pictures_total 2.0",
        "ptqd_retries_total 2.0",
        "ptqd_waiting_pictures 0.0",
        'ptqd_batch_pictures_bucket{le="2.0"} 2.0',
    ):
        assert line in lines
