"""How much an error at one step moves the end sample: probes through the full-precision chain.

A probe is the full-precision chain with one step taken as a quantized network would take it: its corrected output, its calibrated noise.
The rest of the chain is full precision again, so that the network's Jacobian counts. Samples and fresh noise are those of the
full-precision chain, so that nothing but the step differs; noise that the calibration takes out of the step is missing from the end
sample, and counts as any other difference does. To first order the differences of several such steps add at the end.

Errors are pooled over samples as their decibels are, by the geometric mean. A few samples in a hundred stand so close to another image
that a small error tips them over: the plain mean is theirs alone, and says little about a second draw of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""What messages call the reference."""


@dataclass(frozen=True)
class ProbePlan:
    """What to probe.

    Attributes:
        schedule: the coefficients of the chain, and the corrections of every precision at every step.
        reference: the full-precision network.
        quantized: the networks to probe with, by precision.
        noise: of one sample's shape.
        samples: [N] sample numbers.
        rows: [N] conditioning row of each.
        batch_size: samples that walk together; memory holds a state of each for every step and precision.
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
    """What the probes found at the end of the chain.

    Attributes:
        precisions: [P] those that were probed.
        products: [N, S, P, S, P] float64, of every sample: mean over its values of the product of two probes' end errors.
    """

    precisions: tuple[str, ...]
    products: Float64

    @property
    def steps(self) -> int:
        return int(self.products.shape[1])

    @property
    def amplitudes(self) -> Float64:
        """[S, P] root of each probe's own mean square end error."""
        N, S, P = self.products.shape[:3]
        errors = self.products.reshape(N, S * P, S * P).diagonal(axis1=1, axis2=2).reshape(N, S, P)
        return np.sqrt(pooled(errors))

    def predict(self, choice: Sequence[str]) -> float:
        """Mean square end error of a chain with these precisions, one a step; a step whose precision was not probed is exact.

        The errors of a sample's steps are not independent, so that their products count: `||sum_i d_i||^2 = sum_ij <d_i, d_j>`.
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
    """Geometric mean over samples [N, ...] of their mean square errors; 0 where one is exact."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.log(errors).mean(axis=0)))


def probe(plan: ProbePlan, on_step: Callable[[], None] = lambda: None) -> Probes:
    """Probe every step with every quantized precision.

    A chain of S steps takes about `P S^2 / 2` evaluations of the reference for each sample.

    Args:
        plan: what to probe.
        on_step: called after every step of every batch.
    """
    S, P = len(plan.schedule.steps), len(plan.quantized)
    products = [_products(_end_errors(plan, samples, rows, on_step)) for samples, rows in _batches(plan)]
    return Probes(tuple(plan.quantized), np.concatenate(products).reshape(-1, S, P, S, P))


def _products(errors: Float64) -> Float64:
    """[batch, S P, S P] from end errors [batch, S P, values]."""
    return np.asarray(errors @ errors.swapaxes(1, 2) / errors.shape[2])


def _end_errors(plan: ProbePlan, samples: Int64, rows: Int64, on_step: Callable[[], None]) -> Float64:
    """[batch, S P, values] what each probe differs by from the full-precision chain at the end: by step, then by precision."""
    main, probes = ChainState(np.float32(plan.schedule.init_sigma) * plan.noise.start(samples)), list[ChainState]()
    guidance = plan.schedule.sampler.guidance
    for step in plan.schedule.steps:
        z = plan.noise.step(step.step, samples) if step.sigma > 0 else None
        exact = partial(_take, plan, Move.plain(step, REFERENCE, guidance), rows, z)
        probes = [*map(exact, probes), *(_take(plan, Move.corrected(step, name, guidance), rows, z, main) for name in plan.quantized)]
        main = exact(main)
        on_step()
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
