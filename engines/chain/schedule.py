"""The schedule contract: the coefficients of a chain, and the PTQD correction of every precision at every step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from engines.chain.features import cut_name, precision_and_cut
from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from engines.untrusted.limits import CHAIN_STEPS, HISTORY, MAGNITUDE, Coefficient, Name, Scale, Timestep, Variance

SCHEMA_VERSION: Literal[3] = 3


class Strict(BaseModel):
    """Base class of every stored contract: immutable, and rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Correction(Strict):
    """Correction `e' = gain_c q + offset_c + state_gain_c x` of one precision at one step, and its calibrated noise.

    `residual_variance` is the variance of `e' - e` about its mean. `unabsorbed_variance` is the part of the step's excess variance that its
    fresh noise could not absorb: at eta 0, the whole excess.
    """

    gain: tuple[Coefficient, ...]
    offset: tuple[Coefficient, ...]
    state_gain: tuple[Coefficient, ...]
    sigma_corrected: Annotated[Variance, Field(le=MAGNITUDE)]
    residual_variance: Variance
    unabsorbed_variance: Variance

    @model_validator(mode="after")
    def _one_coefficient_per_channel(self) -> Correction:
        channels = [len(self.gain), len(self.offset), len(self.state_gain)]
        if len(set(channels)) > 1 or not self.gain:
            raise ValueError("gain, offset and state_gain have {} channels, {} and {}".format(*channels))
        return self


class StepShift(Strict):
    """Coefficients of a step from a state that quantization made noisier than its level, named as in `Step`."""

    timestep: Timestep
    input_scale: Coefficient
    x_coeff: Coefficient
    out_coeff: Coefficient
    prediction_coeffs: tuple[Coefficient, Coefficient]


class Step(Strict):
    """One step of the chain, with the coefficients of `engines.samplers.table`.

    `shifted` replaces these coefficients in a corrected chain if the precisions that the schedule chose left more noise in the state than
    its level has. `mixed` replaces the correction of the step's network in the chain that the schedule chose, if that chain mixes networks
    and ends nearer to full precision's with it than with the correction for a chain of `precision` alone. A step that reuses features at
    the cut `reuse` takes those of the last step that did not and, with `extrapolation`, the line through those of the last two, see
    `engines.chain.features.extrapolated`.
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
    mixed: Correction | None = None
    reuse: Name | None = None
    extrapolation: Annotated[Coefficient, Field(gt=0)] | None = None

    @property
    def network(self) -> str:
        """Name of the network whose correction the step takes: a precision, or a precision at a cut, see `engines.chain.features`."""
        return self.precision if self.reuse is None else cut_name(self.precision, self.reuse)

    @property
    def corrected(self) -> Step:
        """The step with its shifted coefficients, if there are any, as a corrected chain takes it."""
        return self if self.shifted is None else self.model_copy(update=dict(self.shifted))

    @property
    def chosen_correction(self) -> Correction:
        """The correction in the chain that the schedule chose."""
        return self.mixed or self.corrections[self.network]

    @model_validator(mode="after")
    def _precision_is_corrected(self) -> Step:
        if self.network not in self.corrections:
            raise ValueError(f"step {self.step} uses {self.network}, which has no correction (corrected: {sorted(self.corrections)})")
        if self.extrapolation is not None and self.reuse is None:
            raise ValueError(f"step {self.step} extrapolates features, but reuses none")
        return self


class SamplerRecord(Strict):
    """The sampler that the coefficients come from, for readers and for refits.

    `timesteps` and `sigmas` are those that the plan chose, one for each step; None are those of the noise schedule.
    """

    name: Name
    steps: Annotated[PositiveInt, Field(le=CHAIN_STEPS)]
    eta: Scale
    guidance: Scale
    timesteps: tuple[Timestep, ...] | None = None
    sigmas: tuple[Annotated[Coefficient, Field(gt=0)], ...] | None = None

    def table(self, noise_schedule: NoiseSchedule, first: int = 0) -> SamplerTable:
        """Compile the sampler's coefficients on a model's noise schedule, for a chain that starts at step `first`.

        Raises:
            UsageError: see `compile_sampler`.
        """
        return compile_sampler(self.name, self.steps, self.eta, noise_schedule, timesteps=self.timesteps, sigmas=self.sigmas, first=first)


class CorrectionRecord(Strict):
    """The kind of correction that was fitted; with `auto`, `Schedule.judged` says which."""

    mode: Literal["auto", "none", "ptqd", "signed", "bounded", "joint", "mmse"]
    parts: tuple[Literal["gain", "offset", "chain"], ...] = ("gain", "offset")
    variance: Literal["schedule", "drift", "q-drift", "shift", "none"]

    @property
    def label(self) -> str:
        """Short name, such as `none`, `joint`, `ptqd + variance` or `offset`. Without the gain, all modes are the same offset."""
        parts = [part for part in self.parts if part != "chain"]
        mode = self.mode if self.mode == "none" or len(parts) == 2 else " ".join(parts) or "none"
        variance = {"schedule": " + variance", "none": ""}.get(self.variance, f" + {self.variance}")
        return mode + (" + chain" if "chain" in self.parts else "") + variance


class JudgedCorrection(Strict):
    """A proposal of the mode `auto`, and how far from full precision's its chain ended on held-out samples.

    `chain` is the precision of every step, or None for the chain that the schedule chose, where `correction.mode` `auto` takes each
    precision's own choice. `error_db` is the mean over samples of the mean square error of each one's picture, in dB; `behind_db` is how
    much larger it is than that of the chosen proposal on the same samples, and `standard_error_db` the standard error of this difference.
    """

    chain: Name | None
    correction: CorrectionRecord
    samples: PositiveInt
    error_db: float
    behind_db: float
    standard_error_db: float
    chosen: bool


class Schedule(Strict):
    """A whole chain, noisiest step first."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    sampler: SamplerRecord
    correction: CorrectionRecord
    policy: Name
    init_sigma: Annotated[Coefficient, Field(gt=0)]
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=CHAIN_STEPS)]
    judged: tuple[JudgedCorrection, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if [step.step for step in self.steps] != list(range(len(self.steps))):
            raise ValueError("steps are not numbered 0, 1, 2, ... in order")
        if len({tuple(sorted(_precisions(step))) for step in self.steps}) != 1:
            raise ValueError("every step must have corrections for the same precisions")
        return self

    @model_validator(mode="after")
    def _features_are_kept(self) -> Schedule:
        cuts = sorted({step.reuse for step in self.steps if step.reuse is not None})
        if len(cuts) > 1:
            raise ValueError(f"steps reuse the features of different cuts, {', '.join(cuts)}: a chain keeps those of one cut")
        if self.steps[0].reuse is not None:
            raise ValueError(f"step 0 reuses the features of {self.steps[0].reuse}, but no earlier step has computed them")
        return self

    @property
    def cut(self) -> str | None:
        """Where the networks of the chain are cut; None if no step reuses features."""
        return next((step.reuse for step in self.steps if step.reuse is not None), None)

    @property
    def extrapolates(self) -> bool:
        """Whether any step extrapolates the features that it reuses."""
        return any(step.extrapolation is not None for step in self.steps)

    @property
    def is_shifted(self) -> bool:
        """Whether any step is shifted to a noisier level."""
        return any(step.shifted is not None for step in self.steps)

    def corrects(self, precision: str) -> bool:
        """Whether the corrections hold for a chain of only this precision.

        Those of a shifted schedule, and those for the accumulated error of its chain, hold only for its own precisions, and for a precision
        that leaves no noise.
        """
        taken = [step.network == precision for step in self.steps]
        mixed = self.is_shifted or ("chain" in self.correction.parts and any(taken))
        return not mixed or all(taken) or all(step.corrections[precision].residual_variance == 0 for step in self.steps)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Every precision that the schedule has corrections for."""
        return _precisions(self.steps[0])

    @property
    def networks(self) -> tuple[str, ...]:
        """Every network that some step has a correction for: the precisions, and those at a cut."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.corrections))

    @property
    def networks_at_cut(self) -> tuple[str, ...]:
        """Every network at a cut that some step has a correction for."""
        return tuple(name for name in self.networks if name not in self.precisions)


def _precisions(step: Step) -> tuple[str, ...]:
    return tuple(name for name in step.corrections if precision_and_cut(name)[1] is None)
