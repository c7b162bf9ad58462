"""The walk that the statistics are fitted on: all states advance together, one step at a time from the noisiest.

On policy: each step's correction is fitted before the step is taken, so the statistics of the next step are of the very states that the
corrected quantized sampler visits there, with the full-precision network evaluated at the same states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from calib.correction.correction_fit import Affine
from calib.correction.level_shift import LevelShift
from calib.correction.moments import FOLDS, Moments
from calib.correction.step_fit import CorrectionChoice
from calib.correction.variance import STEP_CHANGE, measured_excess
from calib.walk.policy import Policy
from calib.walk.state_store import StateStore
from calib.walk.step_networks import BatchEvaluator, StepBatch, StepNetworks
from calib.walk.step_result import StepResult, fit_result
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import Noise
from engines.chain.step import ChainState, Move, advance
from engines.samplers.table import SamplerTable, TableStep

__all__ = ["Noise", "StepResult", "Walk", "WalkPlan"]


@dataclass(frozen=True)
class WalkPlan:
    """What to walk, and how.

    Attributes:
        table: the sampler.
        reference: the full-precision network.
        quantized: by precision. One that is the reference itself is not evaluated again, and needs no correction.
        noise: of one sample's shape.
        rows: [N] conditioning row of each of the samples 0..N-1; sample n belongs to fold n mod 4.
        policy: chooses the precision that takes a step.
        correction: what to correct.
        guidance: scale w, where the networks return two branches.
        trajectory: visit the states of the corrected quantized sampler, or those of the full-precision one.
        batch_size: samples that a network is given at a time.
        shift: takes steps from states with more noise than their level says; there if and only if the correction asks for it.
        evaluator: evaluates the networks, which then stand here for their names alone; None evaluates them here.
    """

    table: SamplerTable
    reference: Denoiser
    quantized: Mapping[str, Denoiser]
    noise: Noise
    rows: Int64
    policy: Policy
    correction: CorrectionChoice
    guidance: float = 1.0
    trajectory: Literal["quantized", "fp"] = "quantized"
    batch_size: int = 32
    shift: LevelShift | None = None
    evaluator: BatchEvaluator | None = None

    def __post_init__(self) -> None:
        if (self.correction.variance == "shift") != (self.shift is not None):
            raise ValueError(f"variance {self.correction.variance!r} with shift {self.shift}")


class Walk:
    """Iterate to take the steps:

        with Walk(plan, folder) as walk:
            for result in walk:
                walk.states[:8]   # the states that `result` was fitted on
            walk.states           # the samples

    The states are a memory-mapped file in a new folder under `folder`, written over by each step and gone after the `with`.
    """

    def __init__(self, plan: WalkPlan, folder: Path) -> None:
        self._plan = plan
        self._store = StateStore(folder, (len(plan.rows), *plan.noise.shape), tuple(plan.quantized), plan.table.history)

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()

    @property
    def states(self) -> Float32:
        """[N, channels, ...] the current state of every sample."""
        return self._store.states

    def __iter__(self) -> Iterator[StepResult]:
        self._start()
        unabsorbed = 0.0
        for i in range(self._plan.table.steps):
            row = self._row(i, unabsorbed)
            result = self._fit(i, row)
            yield result
            self._advance(i, row, result)
            unabsorbed = result.corrections[result.chosen].unabsorbed_variance

    def _row(self, i: int, unabsorbed: float) -> TableStep:
        """The coefficients of step `i`, from states to which the step before added so much variance.

        The last step is never shifted. It leaves from next to no noise and takes next to nothing of the network's output; from a noisier
        level it takes several times as much, errors included, of what by then is the finished sample.
        """
        table, shift = self._plan.table, self._plan.shift
        row = table.step(i)
        return row if shift is None or i == table.steps - 1 else shift(row, unabsorbed)

    def _start(self) -> None:
        for batch in self._batches():
            self.states[batch] = np.float32(self._plan.table.init_sigma) * self._plan.noise.start(_samples(batch))

    def _fit(self, i: int, row: TableStep) -> StepResult:
        plan = self._plan
        result = fit_result(
            i, row, self._evaluate(i, row), guidance=plan.guidance, correction=plan.correction, policy=plan.policy,
            measure=partial(self._measure_excess, i, row),
        )  # fmt: skip
        return result if row == plan.table.step(i) else replace(result, shifted=row)

    def _evaluate(self, i: int, row: TableStep) -> dict[str, Moments]:
        """Evaluates every network once at every state; stores the guided outputs and returns the moments, merged in the batches' order."""
        plan, batches = self._plan, [*self._batches()]
        networks = StepNetworks(plan.reference, plan.quantized, plan.guidance)
        merged, ahead, taken = dict[str, Moments](), dict[int, Mapping[str, Moments]](), 0
        for index, seen in (plan.evaluator or networks.one_by_one)(len(batches), lambda index: self._asked(i, row, batches[index])):
            self._store.reference[batches[index]] = seen.reference
            for name, out in seen.outputs.items():
                self._store.outputs[name][batches[index]] = out
            ahead[index] = seen.moments
            while taken in ahead:
                merged = {name: merged[name].merge(more) if taken else more for name, more in ahead.pop(taken).items()}
                taken += 1
        return merged

    def _asked(self, i: int, row: TableStep, batch: slice) -> StepBatch:
        return StepBatch(i, row, np.array(self.states[batch]), self._plan.rows[batch], _samples(batch) % FOLDS)

    def _measure_excess(self, i: int, row: TableStep, name: str, affine: Affine) -> float:
        """Variance that a precision adds to the whole step, from the stored outputs.

        Full precision looks back on what it would have predicted itself. The errors of earlier predictions are in the state already, which
        has the right variance with them; where a step uses these predictions again, the two go together, and often against each other.
        """
        moments = Moments.empty(STEP_CHANGE, channels=len(affine.gain))
        exact, move = self._move(i, row), self._move(i, row, affine)
        for batch in self._batches():
            x = np.array(self.states[batch])
            mean = advance(ChainState(x, self._store.exact_history(batch, i)), self._store.reference[batch][None], exact, None)
            corrected = advance(ChainState(x, self._store.history(batch, i)), self._store.outputs[name][batch][None], move, None)
            values = np.stack([mean.x, corrected.x], dtype=np.float64)
            values[1] -= values[0]
            moments = moments.merge(Moments.of(STEP_CHANGE, values, _samples(batch) % FOLDS))
        return measured_excess(moments)

    def _advance(self, i: int, row: TableStep, result: StepResult) -> None:
        found, on_policy, exact = result.corrections[result.chosen], self._plan.trajectory == "quantized", self._move(i, row)
        outputs = self._store.outputs[result.chosen] if on_policy else self._store.reference
        move = self._move(i, row, found.affine, found.sigma_corrected) if on_policy else self._move(i, row, sigma=row.sigma)
        for batch in self._batches():
            x = np.array(self.states[batch])
            z = self._plan.noise.step(i, _samples(batch)) if move.sigma > 0 else None
            after = advance(ChainState(x, self._store.history(batch, i)), outputs[batch][None], move, z)
            ideal = advance(ChainState(x, self._store.exact_history(batch, i)), self._store.reference[batch][None], exact, None)
            self._store.advance(batch, after.x, after.history, ideal.history)

    def _move(self, i: int, row: TableStep, affine: Affine | None = None, sigma: float = 0.0) -> Move:
        """The step from stored outputs, which are guided already; without `affine` uncorrected."""
        if affine is None:
            return Move(i, row, "", 1.0, sigma=sigma)
        return Move(i, row, "", 1.0, affine.gain, affine.offset, affine.state_gain, sigma)

    def _batches(self) -> Iterator[slice]:
        N, size = len(self._plan.rows), self._plan.batch_size
        return (slice(begin, min(begin + size, N)) for begin in range(0, N, size))


def _samples(batch: slice) -> Int64:
    return np.arange(batch.start, batch.stop, dtype=np.int64)
