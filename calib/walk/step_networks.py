"""Evaluates the networks at a step of the walk, batch by batch, here or on a cluster. A batch gives the same result everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from calib.correction.moments import Moments, observe
from engines.arrays import Float32, Int64
from engines.chain.denoiser import Denoiser, guide
from engines.chain.features import precision_and_cut
from engines.chain.finite import check_output
from engines.chain.step import evaluate, evaluate_cut
from engines.samplers.table import TableStep


@dataclass(frozen=True, eq=False)
class StepBatch:
    """A batch of states at a step.

    Attributes:
        step: index of the step in the walk.
        row: coefficients that the step is taken with.
        x: states [batch, channels, ...].
        rows: rows of the conditioning table, [batch].
        folds: folds for cross-validation, [batch].
        exact: evaluate full precision alone.
        kept: features that the step may reuse, [batch, branches, ...]; None if it computes everything.
        keeps: name of a network at a cut: compute its features alone.
    """

    step: int
    row: TableStep
    x: Float32
    rows: Int64
    folds: Int64
    exact: bool = False
    kept: Float32 | None = None
    keeps: str | None = None


@dataclass(frozen=True, eq=False)
class StepOutputs:
    """Outputs [batch, channels, ...] after guidance, and moments before guidance. `outputs` and `moments` are by precision.

    They are empty for a batch of full precision alone. All but `features`, [batch, branches, ...], are empty for a batch of features alone.
    """

    reference: Float32
    outputs: Mapping[str, Float32]
    moments: Mapping[str, Moments]
    features: Float32 | None = None


class BatchEvaluator(Protocol):
    """Evaluates the batches `0 .. count - 1` of a step, which `batch` makes, and yields the outputs by batch index, in any order."""

    def __call__(self, count: int, batch: Callable[[int], StepBatch], /) -> Iterator[tuple[int, StepOutputs]]: ...


@dataclass(frozen=True)
class StepNetworks:
    """Evaluates every network once at every state; those at a cut only where features can be reused.

    Attributes:
        reference: full-precision network.
        quantized: networks by name. The reference itself may be among them; it is not evaluated again.
        guidance: guidance scale w, used if the networks return two branches.
    """

    reference: Denoiser
    quantized: Mapping[str, Denoiser]
    guidance: float

    def one_by_one(self, count: int, batch: Callable[[int], StepBatch]) -> Iterator[tuple[int, StepOutputs]]:
        """Evaluate batches in this process; implements `BatchEvaluator`."""
        return ((index, self(batch(index))) for index in range(count))

    def __call__(self, batch: StepBatch) -> StepOutputs:
        if batch.keeps is not None:
            _, features = evaluate_cut(self.quantized[batch.keeps], batch.x, batch.row, batch.rows, None)
            return StepOutputs(np.empty(0, np.float32), {}, {}, features)
        e = self._outputs(self.reference, "full precision", batch)
        outputs, moments = dict[str, Float32](), dict[str, Moments]()
        for name in () if batch.exact else computed(self.quantized, reuses=batch.kept is not None):
            network = self.quantized[name]
            q = e if network is self.reference else self._outputs(network, name, batch)
            outputs[name] = guide(q, self.guidance)
            moments[name] = observe(batch.x, e, q, batch.folds)
        return StepOutputs(guide(e, self.guidance), outputs, moments)

    def _outputs(self, network: Denoiser, name: str, batch: StepBatch) -> Float32:
        """Return the raw outputs [branches, batch, channels, ...]."""
        if precision_and_cut(name)[1] is None:
            found = evaluate(network, batch.x, batch.row, batch.rows)
        else:
            found, _ = evaluate_cut(network, batch.x, batch.row, batch.rows, batch.kept)
        check_output(found, name, batch.row.timestep, batch.step)
        return found


def computed(names: Iterable[str], *, reuses: bool) -> list[str]:
    """Return the names of the networks that a step evaluates: those at a cut only where it reuses features."""
    return [name for name in names if reuses or precision_and_cut(name)[1] is None]


@dataclass(frozen=True)
class Elsewhere:
    """Placeholder for a network that runs on the workers of a cluster."""

    name: str

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        raise RuntimeError(f"{self.name} runs elsewhere")
