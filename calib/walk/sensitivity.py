"""Measures how much an error at one step changes the end sample, with probes through the full-precision chain.

A probe is the full-precision chain with one step taken by a quantized network, with its corrected output and its calibrated noise. The
rest of the chain is full precision again, so the probe includes the network's Jacobian. Samples and fresh noise are those of the
full-precision chain, so only the step differs. Noise that the calibration removes from the step is missing from the end sample, and counts
like any other difference. To first order, the differences of several such steps add up at the end.

Errors are pooled over samples by the geometric mean, which averages their decibels. A few samples in a hundred are so close to a different
image that a small error turns them into it: they alone determine the arithmetic mean, which says little about another draw of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calib.walk.walk import Noise
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.finite import check_output
from engines.chain.schedule import Schedule
from engines.chain.step import ChainState, Move, advance, evaluate

REFERENCE = "full precision"
"""Name of the reference in messages."""


@dataclass(frozen=True)
class ProbePlan:
    """What to probe.

    Attributes:
        schedule: coefficients of the chain, and corrections of every precision at every step.
        reference: full-precision network.
        quantized: networks to probe with, by precision.
        noise: noise source with the shape of one sample.
        samples: sample numbers [N].
        rows: conditioning row of each sample, [N].
        batch_size: number of samples per batch; each takes the memory of one state for every step and precision.
    """

    schedule: Schedule
    reference: Denoiser
    quantized: Mapping[str, Denoiser]
    noise: Noise
    samples: Int64
    rows: Int64
    batch_size: int = 16


@dataclass(frozen=True, eq=False)
class Probes:
    """Errors of the probes at the end of the chain.

    Attributes:
        precisions: [P] probed precisions.
        products: float64 [N, S, P, S, P], for every sample the mean over its values of the product of two probes' end errors.
    """

    precisions: tuple[str, ...]
    products: Float64

    @property
    def steps(self) -> int:
        return int(self.products.shape[1])

    @property
    def amplitudes(self) -> Float64:
        """Root mean square end error of each probe, [S, P]."""
        N, S, P = self.products.shape[:3]
        errors = self.products.reshape(N, S * P, S * P).diagonal(axis1=1, axis2=2).reshape(N, S, P)
        return np.sqrt(pooled(errors))

    def predict(self, choice: Sequence[str]) -> float:
        """Predict the mean square end error of a chain with these precisions, one per step. A precision that was not probed is exact.

        The errors of a sample's steps are not independent, so their products count: `||sum_i d_i||^2 = sum_ij <d_i, d_j>`.
        """
        steps = [i for i, name in enumerate(choice) if name in self.precisions]
        columns = [self.precisions.index(choice[i]) for i in steps]
        of_chain = self.products[:, steps, columns][:, :, steps, columns]
        return float(pooled(np.maximum(of_chain.sum(axis=(1, 2)), 0.0)))

    def save(self, path: Path) -> None:
        np.savez(path, allow_pickle=False, precisions=np.array(self.precisions), products=self.products)

    @classmethod
    def load(cls, path: Path) -> Probes:
        with np.load(path) as archive:
            return cls(tuple(archive["precisions"].tolist()), archive["products"])


def pooled(errors: Float64) -> Float64:
    """Return the geometric mean of mean square errors [N, ...] over the N samples; 0 if the error of any sample is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(errors).mean(axis=0)))


def probe(plan: ProbePlan) -> Probes:
    """Probes every step with every quantized precision.

    Probing a chain of S steps takes about `P S^2 / 2` evaluations of the reference per sample.
    """
    S, P = len(plan.schedule.steps), len(plan.quantized)
    products = [_products(_end_errors(plan, samples, rows)) for samples, rows in _batches(plan)]
    return Probes(tuple(plan.quantized), np.concatenate(products).reshape(-1, S, P, S, P))


def _products(errors: Float64) -> Float64:
    """Return the products [batch, S P, S P] of end errors [batch, S P, values]."""
    return np.asarray(errors @ errors.swapaxes(1, 2) / errors.shape[2])


def _end_errors(plan: ProbePlan, samples: Int64, rows: Int64) -> Float64:
    """Return each probe's difference from the end of the full-precision chain, [batch, S P, values], by step and then by precision."""
    main, probes = ChainState(np.float32(plan.schedule.init_sigma) * plan.noise.start(samples)), list[ChainState]()
    guidance = plan.schedule.sampler.guidance
    for step in plan.schedule.steps:
        z = plan.noise.step(step.step, samples) if step.sigma > 0 else None
        exact = partial(_take, plan, Move.plain(step, REFERENCE, guidance), rows, z)
        probes = [*map(exact, probes), *(_take(plan, Move.corrected(step, name, guidance), rows, z, main) for name in plan.quantized)]
        main = exact(main)
    errors = [np.subtract(state.x, main.x, dtype=np.float64).reshape(len(samples), -1) for state in probes]
    return np.stack(errors, axis=1)


def _take(plan: ProbePlan, move: Move, rows: Int64, z: Float32 | None, state: ChainState) -> ChainState:
    network = plan.quantized.get(move.precision, plan.reference)
    outputs = evaluate(network, state.x, move.step, rows)
    check_output(outputs, move.precision, move.step.timestep, move.index)
    return advance(state, outputs, move, z)


def _batches(plan: ProbePlan) -> Iterator[tuple[Int64, Int64]]:
    for begin in range(0, len(plan.samples), plan.batch_size):
        part = slice(begin, begin + plan.batch_size)
        yield plan.samples[part], plan.rows[part]
