"""The schedule contract: every coefficient of a chain, and the PTQD correction of every precision at every step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

SCHEMA_VERSION: Literal[1] = 1

Variance = Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """Base of every stored contract: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Correction(Strict):
    """Correction `e' = gain_c q + offset_c + state_gain_c x` of one precision at one step, and the calibrated noise that goes with it.

    `residual_variance` is the variance of `e' - e` about its mean; `unabsorbed_variance` is what the fresh noise of the step could
    not give up (all of it at eta = 0).
    """

    gain: tuple[FiniteFloat, ...]
    offset: tuple[FiniteFloat, ...]
    state_gain: tuple[FiniteFloat, ...]
    sigma_corrected: Variance
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

    timestep: Annotated[FiniteFloat, Field(ge=0)]
    input_scale: FiniteFloat
    x_coeff: FiniteFloat
    out_coeff: FiniteFloat
    prediction_coeffs: tuple[FiniteFloat, FiniteFloat]


class Step(Strict):
    """One step of the chain; the coefficients are those of `engines.samplers.table`.

    `shifted` takes their place in a corrected chain, where the precisions that the schedule chose left more noise in the state than its
    level has.
    """

    step: NonNegativeInt
    timestep: Annotated[FiniteFloat, Field(ge=0)]
    precision: str
    x_coeff: FiniteFloat
    out_coeff: FiniteFloat
    prediction_coeffs: tuple[FiniteFloat, FiniteFloat]
    history_coeffs: tuple[FiniteFloat, ...]
    input_scale: FiniteFloat
    sigma: Variance
    clip: Annotated[FiniteFloat, Field(gt=0)] | None
    corrections: dict[str, Correction]
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

    name: str
    steps: PositiveInt
    eta: Annotated[FiniteFloat, Field(ge=0)]
    guidance: Annotated[FiniteFloat, Field(ge=0)]


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
    policy: str
    init_sigma: Annotated[FiniteFloat, Field(gt=0)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]

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
