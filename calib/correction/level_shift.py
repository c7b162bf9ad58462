"""Quantization noise that no fresh noise could absorb, taken as a higher noise level of the state.

The idea is that of StepbaQ (Chen, Huang and Chen, NeurIPS 2024). A state that should be `x = sqrt(a) x0 + sqrt(1 - a) eps` and carries
independent noise of variance `u` on top is, divided by `sqrt(1 + u)`, a proper state of the level

    a' = a / (1 + u)        since        (1 - a + u) / (1 + u) = 1 - a'

So the network is asked at the timestep of `a'`, where it finds the noise that is really there, and the step is taken from `a'` to where it
was to go anyway. If the network is right at `a'`, the next state is a proper one: nothing of `u` remains but what the step adds anew.

Where the state is not variance-preserving but `x / s`, as Euler's, whose `s` is the scale of the network's input, `u` is that of `s x`.

A first-order step goes to `alpha x0 + beta eps + sigma z`, whatever level it comes from: `alpha` and `beta` follow from its coefficients,
so that any such sampler is shifted without knowing it.
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
    """Steps of a model taken from noisier levels.

    Attributes:
        alphas: [T] cumulative alphas of the training timesteps.
        prediction_type: what the network predicts.
    """

    alphas: Float64
    prediction_type: PredictionType

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> LevelShift:
        """Raises UsageError for a flow, whose levels are not those of betas."""
        if schedule.prediction_type == "flow":
            raise UsageError(
                "The steps of a flow cannot be taken from another noise level.",
                found='variance "shift" with prediction_type "flow"',
                expected='variance "schedule" or "none"',
            )
        return cls(alpha_bar(schedule), schedule.prediction_type)

    def __call__(self, step: TableStep, u: float) -> TableStep:
        """The step from a state with variance `u` on top of its level, in coefficients of the state as it is; `step` itself at u = 0."""
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
        """The fractional timestep of a level, interpolated in log-SNR; the last one where training saw nothing as noisy."""
        noise_to_signal = np.log1p(-self.alphas) - np.log(np.maximum(self.alphas, np.finfo(np.float64).tiny))
        return float(np.interp(math.log1p(-a) - math.log(a), noise_to_signal, np.arange(len(self.alphas))))


def check_shift(table: SamplerTable, trajectory: str) -> None:
    """Raises UsageError for a chain whose steps cannot be shifted."""
    if trajectory == "fp":
        raise UsageError(
            "States of full precision carry no quantization noise that could be shifted.",
            found='variance "shift" with trajectory "fp"',
            expected='trajectory "quantized", or variance "schedule"',
        )
    if table.clip is not None or not all(is_linear(table.step(i)) for i in range(table.steps)):
        raise UsageError(
            "The steps of this sampler cannot be taken from another noise level.",
            found=f"{table.name} with " + ("clipping" if table.clip is not None else "a history of predictions"),
            expected='a first-order sampler without clipping, or variance "schedule"',
            mend="set sampler.clip_sample to false, if the model samples well without it" if table.clip is not None else None,
        )


def _target(step: TableStep) -> tuple[float, float]:
    """`(alpha, beta)` of a step to `alpha x0 + beta eps`: what solves `A = alpha P + beta R` and `B = alpha Q + beta T`."""
    unmixing = np.array([step.prediction_coeffs, step.epsilon_coeffs]).T
    alpha, beta = np.linalg.solve(unmixing, [step.x_coeff, step.out_coeff]).tolist()
    return alpha, beta
