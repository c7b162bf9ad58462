"""Time whole chains whose steps reuse features against a chain of the same precision that computes everything."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from engines.arrays import Int64
from engines.backends.choice import Runtime, open_backend
from engines.bundle.bundle import Bundle
from engines.chain.features import cut_name
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.chain.schedule import Schedule
from engines.host.files import sha256, write_text
from engines.host.machine import machine_name
from engines.host.timing import interleaved_medians
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser
from ptqd_export.records.times_file import read_times, times_file
from tools.bench.case import SEED
from tools.bench.models import REUSE_PRECISION

EVERY = (2, 3, 5)
"""A chain computes everything at every such step."""

WARM_UP = 1
"""Rounds that are not counted."""

_Key: TypeAlias = tuple[str | None, int | None]
"""Where a chain reuses features, and at every which step it does not; None for the chain that computes everything."""


@dataclass(frozen=True)
class Asked:
    """What to time.

    Attributes:
        batch: samples per chain.
        steps: numbers of steps of the chains.
        rounds: rounds; medians are reported.
        runtime: runtime of the networks.
    """

    batch: int
    steps: Sequence[int]
    rounds: int
    runtime: Runtime = "target"


@dataclass(frozen=True)
class ReuseTime:
    """Time of a chain.

    Attributes:
        steps: number of steps.
        cut: where features are reused; None for a chain that computes everything.
        every: a chain with a cut computes everything at every such step.
        milliseconds: median time of a chain.
        ratio: time of the chain that computes everything, divided by this.
    """

    steps: int
    cut: str | None
    every: int | None
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class _Contestant:
    chain: Chain
    engines: Sequence[EngineDenoiser]
    noise: NoiseSource
    rows: Int64

    def run(self) -> None:
        """Sample a batch, as if it were the first."""
        for engine in self.engines:
            engine.forget()
        self.chain.sample(self.noise, np.arange(len(self.rows), dtype=np.int64), self.rows)


def time_reuse(folder: Path, asked: Asked, tell: Callable[[str], None]) -> Iterator[ReuseTime]:
    """Yield the times of the chains of a bundle, with every number of steps, at every cut and with every distance of whole steps.

    The engines of one cut are open at a time, beside that of the whole network. What is finished lies in the bundle's folder `local`, where
    another call with the same bundle finds it.
    """
    bundle = Bundle.open(folder)
    cuts = tuple(bundle.manifest.precisions[REUSE_PRECISION].cuts)
    for steps in asked.steps:
        for cut in cuts:
            found = _kept_times(bundle, asked, steps, cut, tell)
            yield from found if cut == cuts[0] else found[1:]


def _kept_times(bundle: Bundle, asked: Asked, steps: int, cut: str, tell: Callable[[str], None]) -> list[ReuseTime]:
    """Return the times of the chain that computes everything and of those that reuse features at a cut, and keep them in a file."""
    own = {"bundle": sha256(bundle.folder / "manifest.json"), "batch": asked.batch, "rounds": asked.rounds, "runtime": asked.runtime}
    path = bundle.folder / "local" / machine_name() / f"reuse-{steps}-{cut}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    if any(record.get(name) != value for name, value in own.items()):
        record = {**own, "times": [asdict(one) for one in _measured_times(bundle, asked, steps, cut, tell)]}
        write_text(path, json.dumps(record, indent=1) + "\n")
    return [ReuseTime(**one) for one in record["times"]]


def _measured_times(bundle: Bundle, asked: Asked, steps: int, cut: str, tell: Callable[[str], None]) -> Iterator[ReuseTime]:
    schedule = of_length(bundle.schedule(), steps)
    chains: dict[_Key, Schedule] = {(None, None): schedule, **{(cut, every): reusing(schedule, cut, every) for every in EVERY}}
    tell(f"{steps} steps, {cut}: {len(chains)} chains, {asked.rounds} rounds{_expected(bundle, asked, chains.values())}")
    contestants = _contestants(bundle, asked, chains)
    seconds = interleaved_medians({str(key): one.run for key, one in contestants.items()}, asked.rounds, WARM_UP)
    whole = seconds[str((None, None))]
    for at, every in chains:
        taken = seconds[str((at, every))]
        yield ReuseTime(steps, at, every, 1000 * taken, whole / taken)


def _expected(bundle: Bundle, asked: Asked, chains: Iterable[Schedule]) -> str:
    """Return about how long the chains will take, from the times that the build measured of one step; nothing if it measured none."""
    path = times_file(bundle.folder)
    if not path.is_file():
        return ""
    times = read_times(path)
    networks = Counter(step.network for chain in chains for step in chain.steps)
    milliseconds = sum(count * times.milliseconds_a_step[name] for name, count in networks.items()) * asked.batch / times.batch
    return f", about {math.ceil((WARM_UP + asked.rounds) * milliseconds / 60_000)} min where nothing else runs"


def of_length(schedule: Schedule, steps: int) -> Schedule:
    """Return a schedule of `steps` steps of one precision that repeats the steps of another one: good for timing, not for sampling."""
    again = (schedule.steps[step * len(schedule.steps) // steps] for step in range(steps))
    own = (one.model_copy(update={"step": step, "precision": REUSE_PRECISION, "reuse": None}) for step, one in enumerate(again))
    return schedule.model_copy(update={"steps": tuple(own)})


def reusing(schedule: Schedule, cut: str, every: int) -> Schedule:
    """Return the schedule with features reused at all steps but every `every`-th."""
    steps = (step.model_copy(update={"reuse": cut if step.step % every else None}) for step in schedule.steps)
    return schedule.model_copy(update={"steps": tuple(steps)})


def _contestants(bundle: Bundle, asked: Asked, chains: Mapping[_Key, Schedule]) -> dict[_Key, _Contestant]:
    schedule = chains[None, None]
    timesteps = {REUSE_PRECISION: Chain(schedule, {}, REUSE_PRECISION).timesteps[REUSE_PRECISION]}
    backend = open_backend(bundle, asked.runtime)
    bank = EngineBank(bundle, schedule.sampler.guidance, batch=asked.batch, backend=backend, timesteps=timesteps)
    noise, samples = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(asked.batch, dtype=np.int64)
    rows = np.zeros_like(samples) if bank.conditioning is None else rows_of(samples, noise, bank.conditioning.rows, None)
    contestant = partial(_Contestant, noise=noise, rows=rows)
    names = {key: REUSE_PRECISION if key[0] is None else cut_name(REUSE_PRECISION, key[0]) for key in chains}
    return {key: contestant(Chain(chains[key], {name: bank[name]}, corrected=False), [bank[name]]) for key, name in names.items()}


def reuse_table(title: str, asked: Asked, times: Sequence[ReuseTime]) -> Iterator[str]:
    """Yield the lines of a table in Markdown, the fastest chain of each length first."""
    yield f"{title}, {REUSE_PRECISION}, batch {asked.batch}, runtime {asked.runtime}, medians of {asked.rounds} interleaved rounds"
    yield ""
    yield "| steps | cut | everything at every | chain, ms | against no reuse |"
    yield "| ---: | --- | ---: | ---: | ---: |"
    for one in sorted(times, key=lambda one: (one.steps, -one.ratio)):
        yield f"| {one.steps} | {one.cut or 'none'} | {one.every or 1} | {one.milliseconds:.0f} | {one.ratio:.2f}x |"
