"""Checks, with a few states at a few steps, that the engines as they run are still those that the statistics were measured on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from engines.apps.compare.agreement import Agreement
from engines.apps.compare.visits import Visit, spread_steps, tell_visits
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser, guide
from engines.chain.finite import check_output
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.chain.schedule import Schedule
from engines.chain.told_denoiser import told
from engines.errors import PtqdError

CHECKED_STEPS = 4

WALKED_SAMPLES = 32
"""Samples that are taken down the chain, to steps after the first. The states of the first step are noise and need no walk: that step is
checked with every sample of the statistics, and its figure must come out the same.
"""

RUNTIME_DB = 0.25
"""How many dB an SNR may differ from one of the same samples: how a rounding tie falls depends on batches and threads. On the digits model
(256 samples, six precisions from w2a8 to w8a8, five steps) the stored figures were reproduced to 0.01 dB.
"""

SAMPLING_DB = 20.0
"""The SNR of M of N samples may differ from that of all N by this many dB times sqrt(1/M - 1/N). It is twice the 9.8 dB that was the
largest such factor in all sets of 4, 8, 16 and 32 of the same 256 samples.
"""


class DepartureError(PtqdError):
    """An engine's noise differs from that in its statistics.

    Attributes:
        precision: precision of the engine.
    """

    def __init__(self, precision: str, *, found: str, expected: str) -> None:
        super().__init__(
            f"The engine of {precision} is not the one that the statistics were measured on.",
            found=found,
            expected=expected,
            mend="the engine or its runtime has changed since: build again with --fresh, or find the layer with `ptqd-export bisect`",
        )
        self.precision = precision


@dataclass(frozen=True)
class EngineCheck:
    """What to check.

    Attributes:
        schedule: schedule that was fitted on the walk of the statistics.
        reference: name of full precision.
        networks: networks by precision, including `reference`.
        expected: `snr_db` of the statistics at every step, by precision; None where the outputs were equal.
        noise: noise of the samples of the statistics.
        rows: [N] conditioning rows of all these samples.
        trajectory: chain whose states the statistics were measured at: quantized or full precision.
        batch_size: number of samples that a network is given at once.
        runtime_db: see `RUNTIME_DB`; larger if the runtime is not that of the statistics.
        rounding_db: an SNR above this is float rounding, which differs between runtimes: it need only stay above.
    """

    schedule: Schedule
    reference: str
    networks: Mapping[str, Denoiser]
    expected: Mapping[str, Sequence[float | None]]
    noise: NoiseSource
    rows: Int64
    trajectory: Literal["quantized", "fp"] = "quantized"
    batch_size: int = WALKED_SAMPLES
    runtime_db: float = RUNTIME_DB
    rounding_db: float = math.inf

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that are checked."""
        return spread_steps(self.schedule, min(CHECKED_STEPS, len(self.schedule.steps)))

    @property
    def pieces(self) -> tuple[tuple[Int64, int], ...]:
        """Batches of sample numbers, each with the number of steps that it is taken down the chain."""
        samples = np.arange(len(self.rows), dtype=np.int64)
        walked, others = (batches(part, self.batch_size) for part in (samples[:WALKED_SAMPLES], samples[WALKED_SAMPLES:]))
        return (*((numbers, self.steps[-1] + 1) for numbers in walked), *((numbers, 1) for numbers in others))

    @property
    def evaluations(self) -> int:
        """How often `check_engines` runs a network on a batch."""
        visited = (sum(step < count for step in self.steps) for _, count in self.pieces)
        return sum(count - 1 for _, count in self.pieces) + (1 + len(self.expected)) * sum(visited)

    @property
    def chain(self) -> Chain:
        """Chain that the statistics were measured along."""
        on_policy = self.trajectory == "quantized"
        return Chain(self.schedule, self.networks, None if on_policy else self.reference, corrected=on_policy)


def check_engines(check: EngineCheck, on_evaluation: Callable[[], None] = lambda: None) -> float:
    """Measure the noise of every engine again, at states of the statistics' own samples. Return the largest departure in dB.

    Step 0 is judged first. No engine has touched its states, so a wrong engine is named there, and not one that it leads astray.

    Raises:
        DepartureError: an SNR differs from the one that was measured before.
    """
    check = replace(check, networks={name: told(network, on_evaluation) for name, network in check.networks.items()})
    observer = _Observer(check)
    for numbers, count in check.pieces:
        tell_visits(check.chain, count, check.noise, numbers, check.rows[numbers], observer)
    return max((_departure(check, name, step, found.snr_db) for (name, step), found in observer.found.items()), default=0.0)


@dataclass
class _Observer:
    """Runs every engine at the visits to the checked steps."""

    check: EngineCheck
    found: dict[tuple[str, int], Agreement] = field(default_factory=dict)

    def __call__(self, visit: Visit) -> None:
        if visit.step in self.check.steps:
            e = self._out(self.check.reference, visit)
            for name in self.check.expected:
                self.found.setdefault((name, visit.step), Agreement()).add(e, self._out(name, visit))

    def _out(self, name: str, visit: Visit) -> Float32:
        out = self.check.networks[name](visit.x, visit.timestep, visit.rows)
        check_output(out, name, visit.timestep, visit.step)
        return guide(out, self.check.schedule.sampler.guidance)


def checked_evaluations(samples: int, steps: int, networks: int) -> int:
    """Return how many samples `check_engines` takes through a network, for a chain of this many steps."""
    walked, checked = min(WALKED_SAMPLES, samples), min(CHECKED_STEPS, steps)
    return walked * (steps - 1 + checked * networks) + (samples - walked) * networks


def _departure(check: EngineCheck, name: str, step: int, found: float) -> float:
    measured = check.expected[name][step]
    expected, allowed = math.inf if measured is None else measured, _tolerance(check, step)
    shown, known = (min(snr_db, check.rounding_db) for snr_db in (found, expected))
    departure = 0.0 if shown == known else abs(shown - known)
    if departure > allowed:
        raise DepartureError(
            name, found=f"SNR {found:.2f} dB at step {step}", expected=f"{known:.2f} dB{_or_more(known, check)}, within {allowed:.2f} dB"
        )
    return departure


def _or_more(snr_db: float, check: EngineCheck) -> str:
    return " or more" if snr_db == check.rounding_db < math.inf else ""


def _tolerance(check: EngineCheck, step: int) -> float:
    N = len(check.rows)
    M = N if step == 0 else min(N, WALKED_SAMPLES)
    return check.runtime_db + SAMPLING_DB * math.sqrt(1 / M - 1 / N)
