"""Measures how much an error at one step changes the end sample, with probes through the full-precision chain.

A probe is the full-precision chain with one step taken by a quantized network, with its corrected output and its calibrated noise. The
rest of the chain is full precision again, so the probe includes the network's Jacobian. Samples and fresh noise are those of the
full-precision chain, so only the step differs. Noise that the calibration removes from the step is missing from the end sample, and counts
like any other difference. To first order, the differences of several such steps add up at the end. A long chain is probed at a few
steps, and the others are interpolated; see `calib.walk.probed_steps`.

Errors are pooled over samples by the geometric mean, which averages their decibels. A few samples in a hundred are so close to a different
image that a small error turns them into it: they alone determine the arithmetic mean, which says little about another draw of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from calib.walk.probed_steps import ProbedSteps, own_errors
from calib.walk.walk import Noise
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.finite import check_output
from engines.chain.schedule import Schedule
from engines.chain.step import ChainState, Move, advance, evaluate

REFERENCE = "full precision"
"""Name of the reference in messages."""

_TINY = 1e-150
"""Stands for an end error of 0 in logarithms."""


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
        batch_size: number of samples per batch; each takes the memory of one state for every probed step and precision.
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
        products: float64 [N, K, P, K, P], for every sample the mean over its values of the product of two probes' end errors.
        grid: the K probed steps.
        own: float64 [S, P], see `calib.walk.probed_steps.own_errors`.
    """

    precisions: tuple[str, ...]
    products: Float64
    grid: ProbedSteps
    own: Float64

    @classmethod
    def of_every_step(cls, precisions: tuple[str, ...], products: Float64) -> Probes:
        """Return the probes of a chain whose steps were all probed."""
        S, P = products.shape[1:3]
        return cls(precisions, products, ProbedSteps.every(S), np.ones((S, P)))

    @property
    def steps(self) -> int:
        return self.grid.steps

    @property
    def amplitudes(self) -> Float64:
        """Root mean square end error of each precision at each step, [S, P]."""
        return np.sqrt(pooled(np.square(self._amplitudes)))

    def predict(self, choice: Sequence[str]) -> float:
        """Predict the mean square end error of a chain with these precisions, one per step. A precision that was not probed is exact.

        The errors of a sample's steps are not independent, so their products count: `||sum_i d_i||^2 = sum_ij <d_i, d_j>`.
        """
        N, K, P = self.products.shape[:3]
        summed, alone = np.zeros((N, K, P)), np.zeros(N)
        for i, name in enumerate(choice):
            if name in self.precisions:
                p = self.precisions.index(name)
                amplitude = self._amplitudes[:, i, p]
                summed[:, :, p] += amplitude[:, None] * self.grid.weights[i]
                alone += amplitude**2 * (1 - self._same[:, i, p])
        flat = summed.reshape(N, K * P)
        return float(pooled(np.maximum(np.einsum("na,nab,nb->n", flat, self._cosines, flat) + alone, 0.0)))

    def interpolation_errors(self) -> dict[str, float]:
        """Return how far the interpolated amplitude of the step that was held out is from the measured one, in decibels, by precision.

        It is empty if every step was probed.
        """
        held_out = self.grid.held_out
        if held_out is None:
            return {}
        others = [k for k, step in enumerate(self.grid.probed) if step != held_out]
        found, measured = (pooled(np.square(of[:, held_out])) for of in (self._between(others), self._amplitudes))
        return {
            name: 0.0 if found[p] == measured[p] else float(10 * np.log10(np.maximum(found[p], _TINY) / np.maximum(measured[p], _TINY)))
            for p, name in enumerate(self.precisions)
        }

    @cached_property
    def _amplitudes(self) -> Float64:
        """Root mean square end error of each sample, [N, S, P]."""
        return self._between(range(len(self.grid.probed)))

    @cached_property
    def _measured(self) -> Float64:
        """Root mean square end error of each sample at the probed steps, [N, K, P]."""
        N, K, P = self.products.shape[:3]
        return np.sqrt(self.products.reshape(N, K * P, K * P).diagonal(axis1=1, axis2=2).reshape(N, K, P))

    def _between(self, among: Sequence[int]) -> Float64:
        """Return the amplitudes [N, S, P], interpolated between some of the probed steps, given by their place among them."""
        steps = [self.grid.probed[k] for k in among]
        sensitivities = np.maximum(self._measured[:, list(among)], _TINY) / self.own[steps]
        found = self.own * np.exp(self.grid.curve(np.log(sensitivities), steps))
        return np.where(found > np.sqrt(_TINY), found, 0.0)

    @cached_property
    def _cosines(self) -> Float64:
        """Cosines between the end errors of steps near probed steps, [N, K P, K P].

        Of interpolated steps, they are means over samples. Two of them near the same probed step are different steps, whose cosine is that
        of the step's neighbours among the probed. Without negative eigenvalues, no mean square error is negative.
        """
        N, K, P = self.products.shape[:3]
        measured = np.maximum(self._measured, _TINY)
        cosines = self.products / (measured[:, :, :, None, None] * measured[:, None, None])
        if self.grid.held_out is None:
            return np.asarray(cosines.reshape(N, K * P, K * P))
        mean = cosines.mean(axis=0)
        for k in range(K):
            beside = np.mean([mean[k, :, j] for j in (k - 1, k + 1) if 0 <= j < K], axis=0)
            mean[k, :, k] = (beside + beside.T) / 2
        values, vectors = np.linalg.eigh(mean.reshape(K * P, K * P))
        return np.broadcast_to((vectors * np.maximum(values, 0.0)) @ vectors.T, (N, K * P, K * P))

    @cached_property
    def _same(self) -> Float64:
        """The cosines' share of the square of a step's own amplitude, [N, S, P]; the rest is independent of other steps."""
        W = self.grid.weights
        N, K, P = self.products.shape[:3]
        of_one = self._cosines.reshape(N, K, P, K, P).diagonal(axis1=2, axis2=4)  # [N, K, K, P]
        return np.asarray(np.einsum("sk,nklp,sl->nsp", W, of_one, W, optimize=True))

    def save(self, path: Path) -> None:
        probed = np.array([self.grid.steps, -1 if self.grid.held_out is None else self.grid.held_out, *self.grid.probed])
        np.savez(path, allow_pickle=False, precisions=np.array(self.precisions), products=self.products, grid=probed, own=self.own)

    @classmethod
    def load(cls, path: Path) -> Probes:
        with np.load(path) as archive:
            steps, held_out, *probed = archive["grid"].tolist()
            grid = ProbedSteps(steps, tuple(probed), None if held_out < 0 else held_out)
            return cls(tuple(archive["precisions"].tolist()), archive["products"], grid, archive["own"])


def pooled(errors: Float64) -> Float64:
    """Return the geometric mean of mean square errors [N, ...] over the N samples; 0 if the error of any sample is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(errors).mean(axis=0)))


def probe(plan: ProbePlan) -> Probes:
    """Probes every quantized precision at the steps of `ProbedSteps.of`.

    Probing a chain of S steps takes at most `4 P S` evaluations of a network per sample.
    """
    S, P, names = len(plan.schedule.steps), len(plan.quantized), tuple(plan.quantized)
    grid = ProbedSteps.of(S)
    K = len(grid.probed)
    products = [_products(_end_errors(plan, grid, samples, rows)) for samples, rows in _batches(plan)]
    return Probes(names, np.concatenate(products).reshape(-1, K, P, K, P), grid, own_errors(plan.schedule, names))


def _products(errors: Float64) -> Float64:
    """Return the products [batch, K P, K P] of end errors [batch, K P, values]."""
    return np.asarray(errors @ errors.swapaxes(1, 2) / errors.shape[2])


def _end_errors(plan: ProbePlan, grid: ProbedSteps, samples: Int64, rows: Int64) -> Float64:
    """Return each probe's difference from the end of the full-precision chain, [batch, K P, values], by step and then by precision."""
    main, probes = ChainState(np.float32(plan.schedule.init_sigma) * plan.noise.start(samples)), list[ChainState]()
    guidance = plan.schedule.sampler.guidance
    for step in plan.schedule.steps:
        z = plan.noise.step(step.step, samples) if step.sigma > 0 else None
        exact = partial(_take, plan, Move.plain(step, REFERENCE, guidance), rows, z)
        probes = list(map(exact, probes))
        if step.step in grid.probed:
            probes += [_take(plan, Move.corrected(step, name, guidance), rows, z, main) for name in plan.quantized]
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
