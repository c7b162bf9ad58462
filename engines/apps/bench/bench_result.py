"""The result of `ptqd-run bench`. Its fields are those of the `--json` file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engines.bundle.image_size import ImageSize
from engines.chain.features import precision_and_cut
from engines.networks.chain_choice import AUTO


@dataclass(frozen=True)
class ChainTime:
    """Medians of one contestant.

    Attributes:
        precision_steps: number of steps that each precision, or precision at a cut, takes.
        milliseconds_a_chain: time of a chain of the whole batch.
        milliseconds_a_step: time of a chain divided by its number of steps.
        images_a_second: samples in the batch divided by the time of a chain.
        speedup: speed-up over the baseline.
        outside_engines: share of the chain's time spent outside the runtime: noise, update, correction, checks.
    """

    precision_steps: Mapping[str, int]
    milliseconds_a_chain: float
    milliseconds_a_step: float
    images_a_second: float
    speedup: float
    outside_engines: float


@dataclass(frozen=True)
class BenchResult:
    """Times of all contestants on one machine.

    Attributes:
        processor: name of the processor.
        cores: number of cores that the process may use.
        batch_size: number of samples in a chain.
        steps: number of steps in a chain.
        schedule_steps: number of steps in the schedule that they were taken from.
        rounds: number of rounds that the medians are over.
        guidance: guidance scale of the schedule; any scale above 1 doubles the batch within the networks.
        baseline: contestant that `speedup` is relative to.
        chains: times by precision, with `auto` for the schedule's choice. `w4a8+skip_3` is a chain of w4a8 whose steps reuse features,
            except the first.
        load_milliseconds: time by precision to verify the graph's hash and start its engine, with the file in the system's cache.
        swap_milliseconds: time of the `auto` chain minus the time of its steps in the other chains.
        size: height and width of the images in pixels that was asked for; None is the bundle's first.
        loras: LoRAs in the weights of all networks, with their scales; the time to load an engine is then that of changing its weights too.
    """

    processor: str
    cores: int
    batch_size: int
    steps: int
    schedule_steps: int
    rounds: int
    guidance: float
    baseline: str
    chains: Mapping[str, ChainTime]
    load_milliseconds: Mapping[str, float]
    swap_milliseconds: float
    schema_version: Literal[1] = 1
    size: ImageSize | None = None
    loras: tuple[str, ...] = ()


def swap_milliseconds(chains: Mapping[str, ChainTime]) -> float:
    """Return the time that engine swaps take in the `auto` chain."""
    auto = chains[AUTO]
    without_swaps = sum(count * _step_milliseconds(chains, name) for name, count in auto.precision_steps.items())
    return auto.milliseconds_a_chain - without_swaps


def _step_milliseconds(chains: Mapping[str, ChainTime], name: str) -> float:
    """Return the time of a step. The chain of a network at a cut has one step of the whole network."""
    precision, cut = precision_and_cut(name)
    found = chains[name]
    if cut is None or name not in found.precision_steps:
        return found.milliseconds_a_step
    return (found.milliseconds_a_chain - chains[precision].milliseconds_a_step) / found.precision_steps[name]
