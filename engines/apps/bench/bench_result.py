"""What `ptqd-run bench` found, and what its `--json` file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engines.networks.chain_choice import AUTO


@dataclass(frozen=True)
class ChainTime:
    """Medians of one contestant.

    Attributes:
        precision_steps: steps that each precision takes.
        milliseconds_a_chain: for the whole batch.
        milliseconds_a_step: the same, divided by the steps.
        images_a_second: samples of the batch, divided by the time of the chain.
        speedup: how many times faster than the baseline.
        outside_engines: share of the chain's time that is not the runtime's: noise, update, correction, checks.
    """

    precision_steps: Mapping[str, int]
    milliseconds_a_chain: float
    milliseconds_a_step: float
    images_a_second: float
    speedup: float
    outside_engines: float


@dataclass(frozen=True)
class BenchResult:
    """All contestants on one machine.

    Attributes:
        processor: its name.
        cores: that the process may use.
        batch_size: samples in a chain.
        steps: of a chain.
        schedule_steps: of the schedule that they were taken from.
        rounds: that the medians are over.
        guidance: of the schedule; other than 1 doubles the batch within the networks.
        baseline: the contestant that `speedup` is relative to.
        chains: by precision, and `auto` for the schedule's choice.
        load_milliseconds: by precision, to verify the graph's hash and start its engine, its file being in the system's cache.
        swap_milliseconds: time of the `auto` chain, less what its steps take in the chains of one precision each.
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


def swap_milliseconds(chains: Mapping[str, ChainTime]) -> float:
    """What the swaps of the `auto` chain cost."""
    auto = chains[AUTO]
    without_swaps = sum(count * chains[name].milliseconds_a_step for name, count in auto.precision_steps.items())
    return auto.milliseconds_a_chain - without_swaps
