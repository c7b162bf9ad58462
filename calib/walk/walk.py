"""The walk that the statistics are fitted on: all states advance together, one step at a time from the noisiest.

The walk is on policy: each step's correction is fitted before the step is taken, so the statistics of the next step are measured on the
states that the corrected quantized sampler visits. The full-precision network is evaluated at the same states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from calib.correction.accumulated import ENDS, look_ahead, restored
from calib.correction.correction_fit import Affine, residual_variance
from calib.correction.level_shift import LevelShift
from calib.correction.moments import FOLDS, Moments
from calib.correction.step_change import STEP_CHANGE
from calib.correction.step_fit import CorrectionChoice
from calib.walk.paired_chain import PairedChain
from calib.walk.policy import Policy
from calib.walk.reuse import ReuseSteps
from calib.walk.state_store import StateStore, sample_numbers
from calib.walk.step_networks import BatchEvaluator, StepBatch, StepNetworks
from calib.walk.step_result import StepResult, fit_result
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.features import cut_name, extrapolated
from engines.chain.noise import Noise
from engines.chain.step import ChainState, Move, advance, corrected_output
from engines.samplers.table import SamplerTable, TableStep

__all__ = ["Noise", "StepResult", "Walk", "WalkPlan"]

STORED, GUIDED = "stored outputs", 1.0
"""Precision and guidance scale of moves from outputs that were evaluated and guided before."""


@dataclass(frozen=True)
class WalkPlan:
    """Settings of a walk.

    Attributes:
        table: coefficients of the sampler.
        reference: full-precision network.
        quantized: networks by precision. The reference itself may be among them; it is not evaluated again, and needs no correction.
        noise: noise source with the shape of one sample.
        rows: conditioning row of each of the samples 0..N-1, [N]; sample n belongs to fold n mod 4.
        policy: chooses the precision of each step.
        correction: what to correct.
        proposals: other corrections to fit at the same states.
        reuse: steps that reuse features of earlier ones; `quantized` has the networks at their cut.
        paired: number of samples, from the first, whose full-precision chain is taken if the correction asks for it; None takes all.
        guidance: guidance scale w, used if the networks return two branches.
        trajectory: visit the states of the corrected quantized sampler, or those of the full-precision one.
        batch_size: number of samples per call of a network.
        shift: takes steps from states with more noise than their level says; given if and only if the correction asks for it.
        evaluator: evaluates the networks elsewhere, so that only the names of `quantized` are used; None evaluates them in this process.
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
    proposals: tuple[CorrectionChoice, ...] = ()
    paired: int | None = None
    reuse: ReuseSteps | None = None

    def __post_init__(self) -> None:
        if (self.correction.variance == "shift") != (self.shift is not None):
            raise ValueError(f"variance {self.correction.variance!r} with shift {self.shift}")


class Walk:
    """A walk. Iterate over it to take the steps:

        with Walk(plan, folder) as walk:
            for result in walk:
                walk.states[:8]   # the states that `result` was fitted on
            walk.states           # the samples

    The states are a memory-mapped file in a temporary folder under `folder`. Each step overwrites the file; it is removed after the `with`.
    """

    def __init__(self, plan: WalkPlan, folder: Path) -> None:
        self._plan = plan
        self._store = StateStore(folder, (len(plan.rows), *plan.noise.shape), tuple(plan.quantized), plan.table.history)
        self._paired = self._pair(folder) if plan.correction.accumulates else None

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._store.close()
        if self._paired is not None:
            self._paired.store.close()

    @property
    def states(self) -> Float32:
        """Current state of every sample, [N, channels, ...]."""
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
        """Return the coefficients of step `i`, from states to which the previous step added the variance `unabsorbed`.

        The last step is never shifted. It starts from almost no noise and uses almost nothing of the network's output. From a noisier level
        it would use several times as much of the output, with its errors, on a sample that is already finished.
        """
        table, shift = self._plan.table, self._plan.shift
        row = table.step(i)
        return row if shift is None or i == table.steps - 1 else shift(row, unabsorbed)

    def _start(self) -> None:
        for batch in self._batches():
            self.states[batch] = np.float32(self._plan.table.init_sigma) * self._plan.noise.start(sample_numbers(batch))
        if self._paired is not None:
            self._paired.start()

    def _pair(self, folder: Path) -> PairedChain:
        plan, networks = self._plan, StepNetworks(self._plan.reference, {}, self._plan.guidance)
        samples = len(plan.rows) if plan.paired is None else plan.paired
        store = StateStore(folder, (samples, *plan.noise.shape), (), plan.table.history)
        return PairedChain(plan.table, plan.evaluator or networks.one_by_one, plan.noise, plan.rows, [*self._batches(samples)], store)

    def _fit(self, i: int, row: TableStep) -> StepResult:
        plan = self._plan
        result = fit_result(
            i, row, self._evaluate(i, row), guidance=plan.guidance, correction=plan.correction, proposals=plan.proposals,
            policy=plan.policy, measure=partial(self._measure_change, i, row),
        )  # fmt: skip
        if self._paired is not None:
            self._paired.take_mean(i)
            result = self._restored(i, row, result, self._paired)
        return result if row == plan.table.step(i) else replace(result, shifted=row)

    def _restored(self, i: int, row: TableStep, result: StepResult, exact: PairedChain) -> StepResult:
        """Correct the precision that takes the step for the accumulated error too, given the full-precision chain at the end of its step.

        Other precisions have not accumulated this error. Full precision stays as it is wherever it is used.
        """
        name, found = result.chosen, result.corrections[result.chosen]
        if self._plan.quantized[name] is self._plan.reference:
            return result
        ends, move = Moments.empty(ENDS, channels=len(found.affine.gain)), self._move(i, row, found.affine)
        for batch in exact.batches:
            x, out = np.array(self.states[batch]), self._store.outputs[name][batch][None]
            end = advance(ChainState(x, self._store.history(batch, i)), out, move, None).x
            values = np.stack([look_ahead(x, corrected_output(x, out, move), row), end, exact.states[batch]], dtype=np.float64)
            ends = ends.merge(Moments.of(ENDS, values, sample_numbers(batch) % FOLDS))
        affine = restored(found.affine, row, ends)
        v = residual_variance(result.moments[name].guided(self._plan.guidance), affine)
        corrections = {**result.corrections, name: replace(found, affine=affine, residual_variance=v)}
        return replace(result, corrections=corrections, proposals={**result.proposals, self._plan.correction: corrections})

    def _evaluate(self, i: int, row: TableStep) -> dict[str, Moments]:
        """Evaluate every network once at every state. Stores the guided outputs and returns the moments, merged in batch order."""
        batches = [*self._batches()]
        merged, ahead, taken = dict[str, Moments](), dict[int, Mapping[str, Moments]](), 0
        for index, seen in self._evaluator(len(batches), lambda index: self._batch(i, row, batches[index])):
            self._store.reference[batches[index]] = seen.reference
            for name, out in seen.outputs.items():
                self._store.outputs[name][batches[index]] = out
            ahead[index] = seen.moments
            while taken in ahead:
                merged = {name: merged[name].merge(more) if taken else more for name, more in ahead.pop(taken).items()}
                taken += 1
        return merged

    @property
    def _evaluator(self) -> BatchEvaluator:
        plan = self._plan
        return plan.evaluator or StepNetworks(plan.reference, plan.quantized, plan.guidance).one_by_one

    def _batch(self, i: int, row: TableStep, batch: slice) -> StepBatch:
        reuse = self._plan.reuse
        kept = self._features(batch, reuse.weights.get(i, 0.0)) if reuse is not None and i in reuse.steps else None
        return StepBatch(i, row, np.array(self.states[batch]), self._plan.rows[batch], sample_numbers(batch) % FOLDS, kept=kept)

    def _features(self, batch: slice, weight: float) -> Float32:
        earlier = None if self._store.earlier is None else np.array(self._store.earlier[batch])
        return extrapolated(np.array(self._store.features[batch]), earlier, weight)

    def _keep(self, i: int, row: TableStep, chosen: str) -> None:
        """Store the features of the network that takes step `i`, if a later step reuses them. This runs the network once more, because
        the features of all networks that might have been chosen would take as much room each.
        """
        reuse = self._plan.reuse
        if reuse is None or i not in reuse.keeping:
            return
        batches, keeps = [*self._batches()], cut_name(chosen, reuse.cut)
        for index, found in self._evaluator(len(batches), lambda index: replace(self._batch(i, row, batches[index]), keeps=keeps)):
            assert found.features is not None
            self._store.keep(batches[index], found.features, and_earlier=bool(reuse.weights))

    def _measure_change(self, i: int, row: TableStep, name: str, affine: Affine) -> Moments:
        """Measure the moments of `STEP_CHANGE` of a precision's whole step, from the stored outputs.

        The full-precision step uses the history of what full precision would have predicted. The errors of earlier predictions are already
        in the state, whose variance is right with them. If a step uses these predictions again, their errors are correlated with those in
        the state, often negatively.
        """
        moments = Moments.empty(STEP_CHANGE, channels=len(affine.gain))
        exact, move, (R, T) = self._move(i, row), self._move(i, row, affine), row.epsilon_coeffs
        for batch in self._batches():
            x, out = np.array(self.states[batch]), self._store.outputs[name][batch][None]
            mean = advance(ChainState(x, self._store.exact_history(batch, i)), self._store.reference[batch][None], exact, None)
            corrected = advance(ChainState(x, self._store.history(batch, i)), out, move, None)
            values = np.stack([mean.x, corrected.x, R * x + T * corrected_output(x, out, move)], dtype=np.float64)
            values[1] -= values[0]
            moments = moments.merge(Moments.of(STEP_CHANGE, values, sample_numbers(batch) % FOLDS))
        return moments

    def _advance(self, i: int, row: TableStep, result: StepResult) -> None:
        found, on_policy, exact = result.corrections[result.chosen], self._plan.trajectory == "quantized", self._move(i, row)
        outputs = self._store.outputs[result.chosen] if on_policy else self._store.reference
        self._keep(i, row, result.chosen)
        move = self._move(i, row, found.affine, found.sigma_corrected) if on_policy else self._move(i, row, sigma=row.sigma)
        for batch in self._batches():
            x = np.array(self.states[batch])
            z = self._plan.noise.step(i, sample_numbers(batch)) if move.sigma > 0 else None
            after = advance(ChainState(x, self._store.history(batch, i)), outputs[batch][None], move, z)
            ideal = advance(ChainState(x, self._store.exact_history(batch, i)), self._store.reference[batch][None], exact, None)
            self._store.advance(batch, after.x, after.history, ideal.history)
        if self._paired is not None:
            self._paired.add_noise(i)

    def _move(self, i: int, row: TableStep, affine: Affine | None = None, sigma: float = 0.0) -> Move:
        """Return the move for stored outputs, to which guidance has been applied already; uncorrected without `affine`."""
        if affine is None:
            return Move(i, row, STORED, GUIDED, sigma=sigma)
        return Move(i, row, STORED, GUIDED, affine.gain, affine.offset, affine.state_gain, sigma)

    def _batches(self, samples: int | None = None) -> Iterator[slice]:
        N, size = len(self._plan.rows) if samples is None else samples, self._plan.batch_size
        return (slice(begin, min(begin + size, N)) for begin in range(0, N, size))
