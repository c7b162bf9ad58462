"""A sampler as data: every supported sampler compiles to these arrays, and a single loop runs them.

With the raw network output `out` at state `x` of step `i`:

    m_i = P x + Q out                                    (the predicted clean sample, clipped to [-clip, clip] if clip is set)
    x  <- A x + B out + sum_j H_j m_{i-j} + sigma z

A sampler keeps `m` in its history. For PLMS, `m` is the output itself, and for DEIS the predicted noise.

The coefficients apply to the sampler's own form of the state. `alpha_bar` belongs to the state scaled to unit variance:
`alpha^2 / (alpha^2 + sigma^2)` for a state `alpha x0 + sigma eps`. For variance-preserving diffusion this is the cumulative alpha itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.arrays import Float64


@dataclass(frozen=True)
class TableStep:
    """One row of a `SamplerTable`, with the same field names; the input of `engines.chain.update.update`.

    `steps_left` counts the steps from this one to the end, itself included.
    """

    timestep: float
    alpha_bar: float
    x_coeff: float
    out_coeff: float
    prediction_coeffs: tuple[float, float]
    epsilon_coeffs: tuple[float, float]
    history_coeffs: tuple[float, ...]
    sigma: float
    input_scale: float
    clip: float | None
    steps_left: int = 1


@dataclass(frozen=True)
class SamplerTable:
    """Coefficients of a chain of S steps; step 0 is the noisiest. All arrays are float64.

    Attributes:
        name: name of the sampler.
        timestep: [S] training timestep given to the network at each step (a float: some samplers use fractional timesteps).
        alpha_bar: [S] share of the clean sample's variance in each step's state; the cumulative alpha at its timestep.
        x_coeff: [S] `A`.
        out_coeff: [S] `B`.
        prediction_coeffs: [S, 2] `(P, Q)`.
        epsilon_coeffs: [S, 2] `(R, T)` with `epsilon = R x + T out`: turns the raw output into the noise prediction.
        history_coeffs: [S, J] `H_j`; j = 0 is the current step's `m_i`; J = 0 if the sampler needs no prediction. Rows before the J-th
            have fewer earlier predictions, and zeros for the rest.
        sigma: [S] standard deviation of the fresh noise.
        input_scale: [S] factor applied to `x` before the network.
        init_sigma: standard deviation of the first state.
        clip: bound of `m_i`, or None.
        state_scale: [S] factor that turns each step's state into `sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`.
    """

    name: str
    timestep: Float64
    alpha_bar: Float64
    x_coeff: Float64
    out_coeff: Float64
    prediction_coeffs: Float64
    epsilon_coeffs: Float64
    history_coeffs: Float64
    sigma: Float64
    input_scale: Float64
    init_sigma: float
    clip: float | None
    state_scale: Float64

    @property
    def steps(self) -> int:
        return len(self.timestep)

    @property
    def levels(self) -> tuple[tuple[float, float], ...]:
        """`(alpha, sigma)` of the state `alpha x0 + sigma eps` before each step, [S]."""
        alpha, sigma = np.sqrt(self.alpha_bar) / self.state_scale, np.sqrt(1 - self.alpha_bar) / self.state_scale
        return tuple(zip(alpha.tolist(), sigma.tolist(), strict=True))

    @property
    def history(self) -> int:
        """Maximum number of earlier predictions that a step uses."""
        return max(int(self.history_coeffs.shape[1]) - 1, 0)

    def step(self, i: int) -> TableStep:
        """Return the coefficients of step `i`."""
        P, Q = self.prediction_coeffs[i]
        R, T = self.epsilon_coeffs[i]
        return TableStep(
            timestep=float(self.timestep[i]),
            alpha_bar=float(self.alpha_bar[i]),
            x_coeff=float(self.x_coeff[i]),
            out_coeff=float(self.out_coeff[i]),
            prediction_coeffs=(float(P), float(Q)),
            epsilon_coeffs=(float(R), float(T)),
            history_coeffs=tuple(self.history_coeffs[i].tolist()),
            sigma=float(self.sigma[i]),
            input_scale=float(self.input_scale[i]),
            clip=self.clip,
            steps_left=self.steps - i,
        )
