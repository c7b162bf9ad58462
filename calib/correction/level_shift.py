"""Treats quantization noise that the fresh noise could not absorb as a higher noise level of the state.

The idea comes from StepbaQ (Chen, Huang and Chen, NeurIPS 2024). Take a state that should be `x = sqrt(a) x0 + sqrt(1 - a) eps` but has
additional independent noise of variance `u`. Divided by `sqrt(1 + u)`, it is a proper state of the level

    a' = a / (1 + u)        since        (1 - a + u) / (1 + u) = 1 - a'

So the network is evaluated at the timestep of `a'`, which matches the noise that is actually there, and the step goes from `a'` to its
original target. If the network is right at `a'`, the next state is a proper one: nothing of `u` remains except what the step itself adds.

Some states are not variance-preserving but scaled by `1 / s`, such as Euler's, where `s` is the scale of the network's input. The `u` above
is then the variance after multiplying the state by `s`.

A first-order step goes to `alpha x0 + beta eps + sigma z` from any level. `alpha` and `beta` follow from its coefficients, so the shift
applies to any first-order sampler without knowing which one it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from calib.correction.step_fit import is_linear
from engines.arrays import Float64
from engines.errors import UsageError
from engines.samplers import NoiseSchedule, SamplerTable, TableStep
from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import PredictionType
from engines.samplers.levels.parameterization import epsilon_coeffs, prediction_coeffs


@dataclass(frozen=True, eq=False)
class LevelShift:
    """Moves the starting point of a model's steps to a noisier level.

    Attributes:
        alphas: [T] alpha_bar of the training timesteps.
        prediction_type: what the network predicts.
    """

    alphas: Float64
    prediction_type: PredictionType

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> LevelShift:
        """Raises UsageError for a flow, whose noise levels do not come from betas."""
        if schedule.prediction_type == "flow":
            raise UsageError(
                "The steps of a flow cannot start from another noise level.",
                found='variance "shift" with prediction_type "flow"',
                expected='variance "schedule" or "none"',
            )
        return cls(alpha_bar(schedule), schedule.prediction_type)

    def __call__(self, step: TableStep, u: float) -> TableStep:
        """Return the step from a state with extra noise variance `u`, its coefficients for the unscaled state; `step` itself if u = 0."""
        if u == 0:
            return step
        s = step.input_scale
        a, scale = step.alpha_bar / (1 + s**2 * u), s / math.sqrt(1 + s**2 * u)
        alpha, beta = _target(step)
        ((P, Q),) = prediction_coeffs(self.prediction_type, np.array([a])).tolist()
        ((R, T),) = epsilon_coeffs(self.prediction_type, np.array([a])).tolist()
        return replace(
            step,
            timestep=self._timestep(a),
            alpha_bar=a,
            x_coeff=scale * (alpha * P + beta * R),
            out_coeff=alpha * Q + beta * T,
            prediction_coeffs=(scale * P, Q),
            epsilon_coeffs=(scale * R, T),
            input_scale=scale,
        )

    def _timestep(self, a: float) -> float:
        """Fractional timestep of a level, interpolated in log-SNR; the last timestep if training saw nothing as noisy."""
        noise_to_signal = np.log1p(-self.alphas) - np.log(np.maximum(self.alphas, np.finfo(np.float64).tiny))
        return float(np.interp(math.log1p(-a) - math.log(a), noise_to_signal, np.arange(len(self.alphas))))


def check_shift(table: SamplerTable, trajectory: str) -> None:
    """Raises UsageError if the steps of the chain cannot be shifted."""
    if trajectory == "fp":
        raise UsageError(
            "Full-precision states contain no quantization noise to shift.",
            found='variance "shift" with trajectory "fp"',
            expected='trajectory "quantized", or variance "schedule"',
        )
    if table.clip is not None or not all(is_linear(table.step(i)) for i in range(table.steps)):
        raise UsageError(
            "The steps of this sampler cannot start from another noise level.",
            found=f"{table.name} with " + ("clipping" if table.clip is not None else "a history of predictions"),
            expected='a first-order sampler without clipping, or variance "schedule"',
            mend="set sampler.clip_sample to false, if the model samples well without it" if table.clip is not None else None,
        )


def _target(step: TableStep) -> tuple[float, float]:
    """`(alpha, beta)` of a step to `alpha x0 + beta eps`: the solution of `A = alpha P + beta R` and `B = alpha Q + beta T`."""
    unmixing = np.array([step.prediction_coeffs, step.epsilon_coeffs]).T
    alpha, beta = np.linalg.solve(unmixing, [step.x_coeff, step.out_coeff]).tolist()
    return alpha, beta
