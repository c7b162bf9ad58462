"""One step of a chain, the only place where its order is written: scale, ask the network, guide, correct, update, add noise.

`evaluate` is the first half and `advance` the second, because calibration asks its networks batch by batch and steps afterwards, and a
pipeline of diffusers asks the network itself. The kernel in `engines.backends.tensorrt.device.update_kernel` is the one other copy; a test
holds it against these two functions bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.correction import PerChannel, correct
from engines.chain.denoiser import Denoiser, guide
from engines.chain.schedule import Step
from engines.chain.update import UpdateCoefficients, update


class StepCoefficients(UpdateCoefficients, Protocol):
    """A row of a sampler's table or a step of a schedule; see `engines.samplers.table` for the meaning."""

    @property
    def timestep(self) -> float: ...
    @property
    def input_scale(self) -> float: ...


@dataclass(frozen=True)
class Move:
    """Everything that is decided before a step is taken.

    Attributes:
        index: of the step in the chain.
        step: timestep and coefficients.
        precision: of the network that takes it.
        guidance: scale w.
        gain, offset, state_gain: of the correction, [channels], or one for all of them.
        sigma: standard deviation of the fresh noise.
    """

    index: int
    step: StepCoefficients
    precision: str
    guidance: float
    gain: PerChannel = (1.0,)
    offset: PerChannel = (0.0,)
    state_gain: PerChannel = (0.0,)
    sigma: float = 0.0

    @classmethod
    def plain(cls, step: Step, precision: str, guidance: float) -> Move:
        """A step of a schedule as the sampler has it, without correction."""
        return cls(step.step, step, precision, guidance, sigma=step.sigma)

    @classmethod
    def corrected(cls, step: Step, precision: str, guidance: float) -> Move:
        """A step of a schedule with a precision's correction and calibrated noise."""
        found = step.corrections[precision]
        return cls(step.step, step, precision, guidance, found.gain, found.offset, found.state_gain, found.sigma_corrected)


@dataclass(frozen=True, eq=False)
class ChainState:
    """Where chains are between two steps.

    Attributes:
        x: [batch, channels, ...].
        history: earlier predictions `m_{i-1}, m_{i-2}, ...`, of the same shape; fewer at the start than the sampler looks back on.
    """

    x: Float32
    history: Sequence[Float32] = ()


def evaluate(network: Denoiser, x: Float32, step: StepCoefficients, rows: Int64) -> Float32:
    """The network's raw outputs [branches, batch, channels, ...] at the states `x`, scaled as the sampler says."""
    scaled = x if step.input_scale == 1 else np.asarray(np.float32(step.input_scale) * x)
    return network(scaled, step.timestep, rows)


def advance(state: ChainState, outputs: Float32, move: Move, z: Float32 | None) -> ChainState:
    """The next state.

    Args:
        state: where the step starts.
        outputs: [branches, batch, channels, ...] of the network there; one branch where guidance was applied already.
        move: the step.
        z: standard normal [batch, channels, ...], or None where the step draws no noise.
    """
    out = correct(guide(outputs, move.guidance), state.x, move.gain, move.offset, move.state_gain)
    x, history = update(state.x, out, move.step, state.history)
    if z is not None:
        x += np.float32(move.sigma) * z
    return ChainState(x, history)
