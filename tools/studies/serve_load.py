"""Load test of `ptqd-run serve` over loopback: compares throughput with the bare sampling loop, and every answer with the loop's picture.

    python -m tools.studies.serve_load build/digits --json load.json

Each round times the bare loop and then the server on the same pictures, with new seeds in every round. In the last round, which is not
timed, a replica is killed while requests wait. An answer is lost if it is not a picture, and crossed if its picture differs from the bare
loop's picture for the same seed and class.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from engines.apps.serve.request_limits import Limits
from engines.apps.serve.sampling.item_sampler import ItemSampler, ItemWork
from engines.apps.serve.sampling.items import Item
from engines.apps.serve.serve_command import ServeRequest, serving
from engines.bundle.bundle import Bundle
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.session import Cluster
from engines.host.machine import processor
from engines.networks.chain_choice import ChainChoice
from tools.studies.own_processes import own_processes

REPLICA = "ray::ServeReplica:ptqd:sampler"
NO_LIMITS = Limits(body=65536, number=64, waiting=100_000, rate=1e6)


@dataclass(frozen=True)
class Load:
    """Result of a load test.

    Attributes:
        processor: name of the machine's processor.
        threads: threads of the bare loop, and of each replica.
        batch_size: batch size of the bare loop and of the server.
        clients: number of concurrent clients.
        bare: pictures per second of the bare loop, by round.
        served: pictures per second of the server, by round.
        share: median over the rounds of served / bare.
        requests: number of requests sent, including those of the round with a kill.
        killed: number of replicas killed.
        lost: number of requests that got no picture.
        crossed: number of requests that got a picture other than the bare loop's.
    """

    processor: str
    threads: int
    batch_size: int
    clients: int
    bare: Sequence[float]
    served: Sequence[float]
    share: float
    requests: int
    killed: int
    lost: int
    crossed: int


@dataclass(frozen=True)
class Study:
    """Settings of a load test."""

    bundle: Path
    port: int
    threads: int
    batch_size: int
    clients: int
    pictures: int
    rounds: int


def measure(study: Study) -> Load:
    """Run all rounds of a load test."""
    loop = ItemWork(FolderCopy(study.bundle, {}, {}), ChainChoice(), study.batch_size).open(study.threads)
    classes = _classes(study.bundle)
    request = ServeRequest(study.bundle, NO_LIMITS, "127.0.0.1", study.port, 1, study.batch_size, 0.05, cluster=Cluster(cpus=study.threads))
    bare, served, wrong = [], [], [0, 0]
    with serving(request):
        for number in range(study.rounds + 1):
            items = [Item(seed=number * study.pictures + n, number=0, row=n % classes) for n in range(study.pictures)]
            begin = time.perf_counter()
            expected = _pictures(loop, items, study.batch_size)
            middle = time.perf_counter()
            killer = threading.Timer((middle - begin) / 3, _kill_replica)
            if number == study.rounds:
                killer.start()
            answers = _ask(study, items)
            end = time.perf_counter()
            killer.cancel()
            if number < study.rounds:
                bare.append(len(items) / (middle - begin))
                served.append(len(items) / (end - middle))
                click.echo(f"round {number}: bare {bare[-1]:.3g}, served {served[-1]:.3g} pictures per second", err=True)
            wrong[0] += sum(answers[item] is None for item in items)
            wrong[1] += sum(answers[item] not in (None, expected[item]) for item in items)
    share = statistics.median(one / other for one, other in zip(served, bare, strict=True))
    sent = (study.rounds + 1) * study.pictures
    return Load(processor(), study.threads, study.batch_size, study.clients, bare, served, share, sent, 1, *wrong)


def _classes(bundle: Path) -> int:
    conditioning = Bundle.open(bundle).manifest.model.conditioning
    if conditioning is None:
        raise click.UsageError("The load test needs a class-conditional model.")
    return conditioning.rows


def _pictures(loop: ItemSampler, items: Sequence[Item], batch_size: int) -> dict[Item, bytes]:
    batches = [items[begin : begin + batch_size] for begin in range(0, len(items), batch_size)]
    return {item: picture.png for batch in batches for item, picture in zip(batch, loop(batch), strict=True)}


def _ask(study: Study, items: Sequence[Item]) -> Mapping[Item, bytes | None]:
    """Return the server's answer to one request per item, sent by many clients at once."""
    connections = threading.local()

    def ask(item: Item) -> bytes | None:
        if not hasattr(connections, "own"):
            connections.own = http.client.HTTPConnection("127.0.0.1", study.port, timeout=300)
        connections.own.request("POST", "/images", json.dumps({"seed": item.seed, "class": item.row}))
        answer = connections.own.getresponse()
        content: bytes = answer.read()
        return content if answer.status == 200 else None

    with ThreadPoolExecutor(study.clients) as clients:
        answers = [clients.submit(ask, item) for item in items]
        return {item: None if answer.exception() is not None else answer.result() for item, answer in zip(items, answers, strict=True)}


def _kill_replica() -> None:
    (replica, *_) = own_processes(REPLICA)
    os.kill(replica, signal.SIGKILL)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--port", default=8765, show_default=True)
@click.option("--threads", default=1, show_default=True, help="Threads of the bare loop, and CPUs of the replica.")
@click.option("--batch-size", default=16, show_default=True)
@click.option("--clients", default=64, show_default=True)
@click.option("--pictures", default=320, show_default=True, help="Pictures per round.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(json_file: Path | None, **study: object) -> None:
    """Measure the throughput of the server, and check that every answer is correct."""
    found = asdict(measure(Study(**study)))  # type: ignore[arg-type]  # click passes the options by name
    text = json.dumps(found, indent=1)
    if json_file is not None:
        json_file.write_text(text + "\n")
    click.echo(text)


if __name__ == "__main__":
    main()
