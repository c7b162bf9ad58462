"""A server on Ray Serve, asked by many clients at once while a replica is killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.item_sampler import ItemWork
from engines.apps.serve.sampling.items import Item
from engines.apps.serve.serve_command import ServeRequest, serving
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.session import Cluster
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from tools.studies.own_processes import own_processes
from tools.studies.serve_load import REPLICA

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

REQUESTS = 300
CLIENTS = 24


def ask(port: int, body: dict[str, Any] | None, path: str = "/images") -> tuple[int, bytes]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # it is importing Ray Serve that warns
def test_no_answer_is_lost_or_crossed_where_a_replica_is_killed(tiny: TinyBundle, port: int) -> None:
    items = [Item(seed, 0, seed % 3) for seed in range(REQUESTS)]
    bare = ItemWork(FolderCopy(tiny.folder, {}, {}), ChainChoice(), 16).open(1)
    expected = [picture.png for begin in range(0, REQUESTS, 16) for picture in bare(items[begin : begin + 16])]
    assert len(set(expected)) == REQUESTS
    limits = Limits(body=1000, number=8, waiting=REQUESTS, rate=1e6)
    request = ServeRequest(tiny.folder, limits, "127.0.0.1", port, 2, 16, 0.02, cluster=Cluster(cpus=1))
    with serving(request), ThreadPoolExecutor(CLIENTS) as clients:
        answers = [clients.submit(ask, port, {"seed": item.seed, "class": item.row}) for item in items]
        answers[REQUESTS // 3].result()
        os.kill(own_processes(REPLICA)[0], signal.SIGKILL)
        found = [answer.result() for answer in answers]
        assert [status for status, _ in found] == [200] * REQUESTS
        assert [png for _, png in found] == expected
        assert ask(port, {"seed": 1, "number": 9})[0] == 400
        assert ask(port, {"seed": 1, "prompt": "x" * 2000})[0] == 413
        assert json.loads(ask(port, None, "/health")[1])["status"] == "ok"
        page = ask(port, None, "/metrics")[1].decode()
    assert f'ptqd_requests_total{{status="200"}} {REQUESTS:.1f}' in page


def test_a_bundle_that_cannot_be_drawn_is_refused(tiny_latent: TinyBundle) -> None:
    request = ServeRequest(tiny_latent.folder, Limits(1, 1, 1, 1), "127.0.0.1", 1, 1, 1, 0)
    with pytest.raises(UsageError, match="not pictures"), serving(request):
        pass
