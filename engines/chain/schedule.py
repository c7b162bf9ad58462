"""The schedule contract: every coefficient of a chain, and the PTQD correction of every precision at every step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from engines.untrusted.limits import CHAIN_STEPS, HISTORY, MAGNITUDE, Coefficient, Name, Scale, Timestep, Variance

SCHEMA_VERSION: Literal[1] = 1


class Strict(BaseModel):
    """Base of every stored contract: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Correction(Strict):
    """Correction `e' = gain_c q + offset_c + state_gain_c x` of one precision at one step, and the calibrated noise that goes with it.

    `residual_variance` is the variance of `e' - e` about its mean; `unabsorbed_variance` is what the fresh noise of the step could
    not give up (all of it at eta = 0).
    """

    gain: tuple[Coefficient, ...]
    offset: tuple[Coefficient, ...]
    state_gain: tuple[Coefficient, ...]
    sigma_corrected: Annotated[Variance, Field(le=MAGNITUDE)]
    residual_variance: Variance
    unabsorbed_variance: Variance

    @model_validator(mode="after")
    def _one_of_each_a_channel(self) -> Correction:
        channels = [len(self.gain), len(self.offset), len(self.state_gain)]
        if len(set(channels)) > 1 or not self.gain:
            raise ValueError("gain, offset and state_gain have {} channels, {} and {}".format(*channels))
        return self


class StepShift(Strict):
    """Coefficients of a step from a state that quantization made noisier than its level; under the same names as in `Step`."""

    timestep: Timestep
    input_scale: Coefficient
    x_coeff: Coefficient
    out_coeff: Coefficient
    prediction_coeffs: tuple[Coefficient, Coefficient]


class Step(Strict):
    """One step of the chain; the coefficients are those of `engines.samplers.table`.

    `shifted` takes their place in a corrected chain, where the precisions that the schedule chose left more noise in the state than its
    level has.
    """

    step: NonNegativeInt
    timestep: Timestep
    precision: Name
    x_coeff: Coefficient
    out_coeff: Coefficient
    prediction_coeffs: tuple[Coefficient, Coefficient]
    history_coeffs: Annotated[tuple[Coefficient, ...], Field(max_length=HISTORY)]
    input_scale: Coefficient
    sigma: Annotated[Variance, Field(le=MAGNITUDE)]
    clip: Annotated[Coefficient, Field(gt=0)] | None
    corrections: dict[Name, Correction]
    shifted: StepShift | None = None

    @property
    def corrected(self) -> Step:
        """The step as a corrected chain takes it."""
        return self if self.shifted is None else self.model_copy(update=dict(self.shifted))

    @model_validator(mode="after")
    def _precision_is_corrected(self) -> Step:
        if self.precision not in self.corrections:
            raise ValueError(f"step {self.step} uses {self.precision}, which has no correction (there are {sorted(self.corrections)})")
        return self


class SamplerRecord(Strict):
    """Where the coefficients came from, for people and for refits."""

    name: Name
    steps: Annotated[PositiveInt, Field(le=CHAIN_STEPS)]
    eta: Scale
    guidance: Scale


class CorrectionRecord(Strict):
    """What was fitted."""

    mode: Literal["none", "ptqd", "signed", "joint", "mmse"]
    parts: tuple[Literal["gain", "offset"], ...] = ("gain", "offset")
    variance: Literal["schedule", "shift", "none"]


class Schedule(Strict):
    """A whole chain, noisiest step first."""

    schema_version: Literal[1] = SCHEMA_VERSION
    sampler: SamplerRecord
    correction: CorrectionRecord
    policy: Name
    init_sigma: Annotated[Coefficient, Field(gt=0)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=CHAIN_STEPS)]

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if [step.step for step in self.steps] != list(range(len(self.steps))):
            raise ValueError("steps are not numbered 0, 1, 2, ... in order")
        if len({tuple(sorted(step.corrections)) for step in self.steps}) != 1:
            raise ValueError("every step must hold a correction for the same precisions")
        return self

    @property
    def is_shifted(self) -> bool:
        """Whether some step answers the noise that the steps before it left in the state."""
        return any(step.shifted is not None for step in self.steps)

    def corrects(self, precision: str) -> bool:
        """Whether it holds for a chain of this precision alone; a shifted one does for its own, and for one that leaves no noise."""
        own = all(step.precision == precision for step in self.steps)
        return not self.is_shifted or own or all(step.corrections[precision].residual_variance == 0 for step in self.steps)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that the schedule holds corrections for."""
        return tuple(self.steps[0].corrections)
