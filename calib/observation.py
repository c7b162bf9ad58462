"""What the networks say at a step of the walk: evaluated batch by batch, here or wherever else, and the same for a batch everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from calib.moments import Moments, observe
from engines.arrays import Float32, Int64
from engines.denoiser import Denoiser, guide
from engines.finite import check_output


@dataclass(frozen=True, eq=False)
class StepBatch:
    """States at a step.

    Attributes:
        step: index in the walk.
        x: [batch, channels, ...].
        input_scale: of the states, before a network is given them.
        timestep: given to the networks.
        rows: [batch] of the conditioning table.
        folds: [batch].
    """

    step: int
    x: Float32
    input_scale: float
    timestep: float
    rows: Int64
    folds: Int64


@dataclass(frozen=True, eq=False)
class Observed:
    """Outputs [batch, channels, ...] after guidance and moments before it, by precision."""

    reference: Float32
    outputs: Mapping[str, Float32]
    moments: Mapping[str, Moments]


class Observer(Protocol):
    """Evaluates the batches `0 .. count - 1` of a step, which `batch` makes, in whatever order."""

    def __call__(self, count: int, batch: Callable[[int], StepBatch], /) -> Iterator[tuple[int, Observed]]: ...


@dataclass(frozen=True)
class Networks:
    """Every network is evaluated once at every state.

    Attributes:
        reference: the full-precision one.
        quantized: by precision. One that is the reference itself is not evaluated again.
        guidance: scale w, where the networks return two branches.
    """

    reference: Denoiser
    quantized: Mapping[str, Denoiser]
    guidance: float

    def one_by_one(self, count: int, batch: Callable[[int], StepBatch]) -> Iterator[tuple[int, Observed]]:
        """An `Observer`."""
        return ((index, self(batch(index))) for index in range(count))

    def __call__(self, batch: StepBatch) -> Observed:
        scaled = np.asarray(np.float32(batch.input_scale) * batch.x)
        e = self.reference(scaled, batch.timestep, batch.rows)
        check_output(e, "full precision", batch.timestep, batch.step)
        outputs, moments = dict[str, Float32](), dict[str, Moments]()
        for name, network in self.quantized.items():
            q = e if network is self.reference else network(scaled, batch.timestep, batch.rows)
            check_output(q, name, batch.timestep, batch.step)
            outputs[name] = guide(q, self.guidance)
            moments[name] = observe(batch.x, e, q, batch.folds)
        return Observed(guide(e, self.guidance), outputs, moments)


@dataclass(frozen=True)
class Elsewhere:
    """In place of a network that runs on the workers of a cluster."""

    name: str

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:  # noqa: ARG002 (the protocol's)
        raise RuntimeError(f"{self.name} runs elsewhere")
