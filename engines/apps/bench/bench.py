"""`ptqd-run bench`: times whole chains in turn, one contestant per precision and one that swaps engines as the schedule says."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from engines.apps.bench.bench_result import BenchResult, ChainTime, swap_milliseconds
from engines.apps.bench.timed_engine import Stopwatch, timed
from engines.arrays import Int64
from engines.backends.choice import Runtime, open_backend
from engines.bundle.bundle import Bundle
from engines.bundle.image_size import ImageSize
from engines.chain.features import cut_name, precision_and_cut
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.host.machine import cores, processor
from engines.host.timing import interleaved_medians
from engines.networks.chain_choice import AUTO
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_use import LoraUse
from engines.terminal.progress import progress

WARM_UP = 1
SEED = 0


@dataclass(frozen=True)
class BenchRequest:
    """What to time.

    Attributes:
        bundle: bundle folder.
        batch_size: number of samples in a chain.
        rounds: number of timed chains per contestant.
        steps: number of the schedule's steps to take; None takes all.
        runtime: runtime of the networks.
        size: height and width of the images in pixels; None takes the bundle's first.
        loras: LoRAs in the weights of all networks.
    """

    bundle: Path
    batch_size: int = 8
    rounds: int = 5
    steps: int | None = None
    runtime: Runtime = "target"
    size: ImageSize | None = None
    loras: tuple[LoraUse, ...] = ()


def bench_bundle(request: BenchRequest) -> BenchResult:
    """Time chains of a bundle's default schedule.

    Raises:
        UsageError: there is no bundle, its schedule has fewer steps than requested, or the LoRAs do not fit it.
        PtqdError: the bundle is damaged, or a network failed.
    """
    bundle = Bundle.open(request.bundle, request.size)
    whole = bundle.schedule()
    schedule = excerpt(whole, request.steps)
    precisions = _costliest_first(bundle, schedule)
    loads = {name: partial(_load, request, schedule, name) for name in precisions}
    load_seconds = interleaved_medians(loads, rounds=1)
    contestants = _contestants(request, bundle, schedule, precisions)
    chains = _time(contestants, request.rounds, baseline=precisions[0])
    return BenchResult(
        processor=processor(),
        cores=cores(),
        batch_size=request.batch_size,
        steps=len(schedule.steps),
        schedule_steps=len(whole.steps),
        rounds=request.rounds,
        guidance=schedule.sampler.guidance,
        baseline=precisions[0],
        chains=chains,
        load_milliseconds={name: 1000 * seconds for name, seconds in load_seconds.items()},
        swap_milliseconds=swap_milliseconds(chains),
        size=request.size,
        loras=tuple(map(str, request.loras)),
    )


def excerpt(schedule: Schedule, steps: int | None) -> Schedule:
    """Return a schedule with only `steps` of the steps, spread evenly from the first to the last: good for timing, not for sampling.

    Raises:
        UsageError: the schedule has fewer steps.
    """
    total = len(schedule.steps)
    if steps is None:
        return schedule
    if steps > total:
        raise UsageError("The schedule has fewer steps.", found=f"--steps {steps}", expected=f"1 to {total}")
    chosen = np.linspace(0, total - 1, steps).round().astype(np.int64).tolist()
    renumbered = tuple(schedule.steps[old].model_copy(update={"step": new}) for new, old in enumerate(chosen))
    return schedule.model_copy(update={"steps": renumbered})


def _costliest_first(bundle: Bundle, schedule: Schedule) -> list[str]:
    """Return the precisions by falling bit operations; the first is full precision."""
    records = bundle.manifest.precisions
    known = [name for name in records if name in schedule.precisions]
    return sorted(known, key=lambda name: -records[name].weight_bits * records[name].activation_bits)


def _load(request: BenchRequest, schedule: Schedule, precision: str) -> EngineDenoiser:
    bank = _bank(request, Bundle.open(request.bundle, request.size), schedule)
    bank.open([precision])
    return bank[precision]


def _bank(request: BenchRequest, bundle: Bundle, schedule: Schedule) -> EngineBank:
    backend = open_backend(bundle, request.runtime)
    timesteps = {name: Chain(schedule, {}, name).timesteps[name] for name in schedule.precisions}
    changed = ChangedWeights.of(bundle, request.loras) if request.loras else None
    return EngineBank(bundle, schedule.sampler.guidance, batch=request.batch_size, backend=backend, timesteps=timesteps, changed=changed)


@dataclass
class _Contestant:
    """A chain that is run repeatedly from the same noise, each time as if it were the first of a command."""

    chain: Chain
    engines: Mapping[str, EngineDenoiser]
    watch: Stopwatch
    noise: NoiseSource
    rows: Int64
    outside_engines: list[float] = field(default_factory=list)

    def run(self, on_step: Callable[[], None]) -> None:
        for engine in self.engines.values():
            engine.forget()
        in_engines, begin = self.watch.seconds, time.perf_counter()
        self.chain.sample(self.noise, np.arange(len(self.rows), dtype=np.int64), self.rows, on_step)
        elapsed = time.perf_counter() - begin
        self.outside_engines.append(1 - (self.watch.seconds - in_engines) / elapsed)


def _contestants(request: BenchRequest, bundle: Bundle, schedule: Schedule, precisions: list[str]) -> dict[str, _Contestant]:
    bank, watch = _bank(request, bundle, schedule), Stopwatch()
    at_cut = dict.fromkeys(cut_name(step.precision, schedule.cut) for step in schedule.steps) if schedule.cut else {}
    bank.open((*precisions, *at_cut))
    engines = {name: timed(bank[name], watch) for name in (*precisions, *at_cut)}
    noise = NoiseSource(SEED, bundle.manifest.model.sample_shape)
    samples = np.arange(request.batch_size, dtype=np.int64)
    rows = np.zeros_like(samples) if bank.conditioning is None else rows_of(samples, noise, bank.conditioning.rows, None)
    chains = {name: Chain(schedule, engines, name) for name in precisions}
    chains |= {name: Chain(_reusing(schedule, name), engines, corrected=False) for name in at_cut}
    chains[AUTO] = Chain(schedule, engines)
    return {name: _Contestant(chain, engines, watch, noise, rows) for name, chain in chains.items()}


def _reusing(schedule: Schedule, name: str) -> Schedule:
    """Return a chain of a network at a cut: every step but the first reuses features."""
    precision, cut = precision_and_cut(name)
    steps = [
        step.model_copy(update={"precision": precision, "reuse": cut if step.step else None, "extrapolation": None})
        for step in schedule.steps
    ]
    return schedule.model_copy(update={"steps": tuple(steps)})


def _time(contestants: Mapping[str, _Contestant], rounds: int, baseline: str) -> dict[str, ChainTime]:
    steps = sum(len(contestant.chain.schedule.steps) for contestant in contestants.values())
    with progress("timing", (WARM_UP + rounds) * steps) as advance:
        runs = {name: partial(contestant.run, advance) for name, contestant in contestants.items()}
        seconds = interleaved_medians(runs, rounds, WARM_UP)
    return {name: _chain_time(contestants[name], seconds[name], seconds[baseline]) for name in contestants}


def _chain_time(contestant: _Contestant, seconds: float, baseline_seconds: float) -> ChainTime:
    return ChainTime(
        precision_steps=dict(Counter(contestant.chain.step_networks)),
        milliseconds_a_chain=1000 * seconds,
        milliseconds_a_step=1000 * seconds / len(contestant.chain.schedule.steps),
        images_a_second=len(contestant.rows) / seconds,
        speedup=baseline_seconds / seconds,
        outside_engines=statistics.median(contestant.outside_engines[WARM_UP:]),
    )
