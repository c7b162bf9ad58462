"""The full-precision chain beside a walk: the same samples from the same noise, without quantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calib.correction.moments import FOLDS
from calib.walk.state_store import StateStore, sample_numbers
from calib.walk.step_networks import BatchEvaluator, StepBatch
from engines.arrays import Float32, Int64
from engines.chain.noise import Noise
from engines.chain.step import ChainState, Move, advance
from engines.samplers.table import SamplerTable


@dataclass(frozen=True, eq=False)
class PairedChain:
    """The chain, one step at a time.

    Attributes:
        table: coefficients of the sampler.
        evaluate: evaluates full precision on batches of states.
        noise: noise source of the walk.
        rows: conditioning row of each sample, [N].
        batches: the samples of each batch, from the first on.
        store: the chain's states.
    """

    table: SamplerTable
    evaluate: BatchEvaluator
    noise: Noise
    rows: Int64
    batches: Sequence[slice]
    store: StateStore

    @property
    def states(self) -> Float32:
        """Current state of every sample that takes the chain, [N, channels, ...]."""
        return self.store.states

    def start(self) -> None:
        for batch in self.batches:
            self.states[batch] = np.float32(self.table.init_sigma) * self.noise.start(sample_numbers(batch))

    def take_mean(self, i: int) -> None:
        """Take step `i` without its fresh noise, which `add_noise` adds."""
        move = Move(i, self.table.step(i), "full precision", guidance=1.0)
        for index, seen in self.evaluate(len(self.batches), lambda index: self._batch(i, self.batches[index])):
            batch = self.batches[index]
            state = ChainState(np.array(self.states[batch]), self.store.history(batch, i))
            after = advance(state, seen.reference[None], move, None)
            self.store.advance(batch, after.x, after.history, ())

    def add_noise(self, i: int) -> None:
        sigma = self.table.step(i).sigma
        if sigma > 0:
            for batch in self.batches:
                self.states[batch] += np.float32(sigma) * self.noise.step(i, sample_numbers(batch))

    def _batch(self, i: int, batch: slice) -> StepBatch:
        return StepBatch(i, self.table.step(i), np.array(self.states[batch]), self.rows[batch], sample_numbers(batch) % FOLDS, exact=True)
