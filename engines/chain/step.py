"""One step of a chain, in this order: scale, evaluate the network, guide, correct, update, add noise.

The step has two halves, `evaluate` and `advance`: calibration evaluates its networks batch by batch and advances afterwards, and a
diffusers pipeline evaluates the network itself. The only other copy is the kernel in `engines.backends.tensorrt.device.update_kernel`; a
test compares it with these two functions bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.chain.correction import PerChannel, correct
from engines.chain.denoiser import Denoiser, guide
from engines.chain.features import CutDenoiser, cut_name
from engines.chain.schedule import Correction, Step
from engines.chain.update import UpdateCoefficients, predict, update


class StepCoefficients(UpdateCoefficients, Protocol):
    """A row of a sampler's table or a step of a schedule; `engines.samplers.table` defines the fields."""

    @property
    def timestep(self) -> float: ...
    @property
    def input_scale(self) -> float: ...


@dataclass(frozen=True)
class Move:
    """Everything that is decided before a step is taken.

    Attributes:
        index: index of the step in the chain.
        step: timestep and coefficients.
        precision: precision of the network.
        guidance: guidance scale w.
        gain, offset, state_gain: coefficients of the correction, [channels], or one for all channels.
        sigma: standard deviation of the fresh noise.
        cut: where the network is cut, in a chain with steps that reuse features; None in other chains.
        reuses: whether this step reuses the features of an earlier one.
        extrapolation: weight with which it extrapolates them; see `engines.chain.features.extrapolated`.
        keeps_earlier: whether steps of the chain extrapolate, and so need the features of the last two full steps.
    """

    index: int
    step: StepCoefficients
    precision: str
    guidance: float
    gain: PerChannel = (1.0,)
    offset: PerChannel = (0.0,)
    state_gain: PerChannel = (0.0,)
    sigma: float = 0.0
    cut: str | None = None
    reuses: bool = False
    extrapolation: float = 0.0
    keeps_earlier: bool = False

    @classmethod
    def plain(cls, step: Step, precision: str, guidance: float) -> Move:
        """Return the move for a step of a schedule without correction, with the sampler's own noise."""
        return cls(step.step, step, precision, guidance, sigma=step.sigma)

    @classmethod
    def corrected(cls, step: Step, precision: str, guidance: float, correction: Correction | None = None) -> Move:
        """Return the move for a step of a schedule with a correction and its calibrated noise; None takes that of the precision."""
        found = correction or step.corrections[precision]
        return cls(step.step, step, precision, guidance, found.gain, found.offset, found.state_gain, found.sigma_corrected)

    @property
    def network(self) -> str:
        """Name of the network that takes the step."""
        return self.precision if self.cut is None else cut_name(self.precision, self.cut)


@dataclass(frozen=True, eq=False)
class ChainState:
    """State of a batch of chains between two steps.

    Attributes:
        x: states [batch, channels, ...].
        history: earlier predictions `m_{i-1}, m_{i-2}, ...`, same shape; at the start of a chain fewer than the sampler uses.
    """

    x: Float32
    history: Sequence[Float32] = ()


def evaluate(network: Denoiser, x: Float32, step: StepCoefficients, rows: Int64) -> Float32:
    """Return the network's raw outputs [branches, batch, channels, ...] at the states `x`, to which it applies the input scale."""
    return network(scaled_input(x, step), step.timestep, rows)


def scaled_input(x: Float32, step: StepCoefficients) -> Float32:
    """Return what the network is given of the states `x`."""
    return x if step.input_scale == 1 else np.asarray(np.float32(step.input_scale) * x)


def evaluate_cut(network: Denoiser, x: Float32, step: StepCoefficients, rows: Int64, kept: Float32 | None) -> tuple[Float32, Float32]:
    """Return the raw outputs of a network that is cut, see `evaluate`, and the features at the cut, float32 [batch, branches, ...].

    Args:
        network: a `CutDenoiser`.
        x: states [batch, channels, ...].
        step: coefficients of the step.
        rows: rows of the conditioning table [batch].
        kept: features of an earlier step to reuse; None computes them.
    """
    assert isinstance(network, CutDenoiser), "a network that is cut"
    if kept is None:
        return network.keep(scaled_input(x, step), step.timestep, rows)
    return network.reuse(scaled_input(x, step), step.timestep, rows, kept), kept


def advance(state: ChainState, outputs: Float32, move: Move, z: Float32 | None) -> ChainState:
    """Return the next state.

    Args:
        state: state before the step.
        outputs: network outputs [branches, batch, channels, ...] at this state; one branch if guidance has been applied already.
        move: how to take the step.
        z: standard normal [batch, channels, ...], or None if the step draws no noise.
    """
    x, history = update(state.x, corrected_output(state.x, outputs, move), move.step, state.history)
    if z is not None:
        x += np.float32(move.sigma) * z
    return ChainState(x, history)


def corrected_output(x: Float32, outputs: Float32, move: Move) -> Float32:
    """Return the guided and corrected output [batch, channels, ...] of raw outputs [branches, batch, channels, ...] at the states `x`."""
    return correct(guide(outputs, move.guidance), x, move.gain, move.offset, move.state_gain)


def predicted_clean(x: Float32, outputs: Float32, move: Move) -> Float32:
    """Return the clean samples [batch, channels, ...] that a step predicts from the states `x` before it; see `advance`.

    For PLMS and DEIS this is the output or the noise instead: see `engines.samplers.table`.
    """
    return predict(x, corrected_output(x, outputs, move), move.step)
