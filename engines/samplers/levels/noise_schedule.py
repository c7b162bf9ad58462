"""The noise schedule that a model was trained with, as diffusers writes it to `scheduler_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from engines.errors import UsageError
from engines.samplers.levels.scheduler_rules import dynamic_mu, mu_of_steps, refuse_unsupported, settings_of

BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"]
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow"]
TimestepSpacing: TypeAlias = Literal["leading", "trailing", "linspace"]
VarianceType: TypeAlias = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]
FinalSigmas: TypeAlias = Literal["zero", "sigma_min"]
SolverType: TypeAlias = Literal["midpoint", "heun", "bh1", "bh2", "logrho"]
Spacing: TypeAlias = Literal["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
TimeShift: TypeAlias = Literal["exponential", "linear"]
LastSigma: TypeAlias = Literal["timestep", "step"]

# A beta of exactly 1 means zero terminal signal-to-noise ratio.
Beta: TypeAlias = Annotated[float, Field(gt=0, le=1)]


class NoiseSchedule(BaseModel):
    """All diffusers scheduler settings that determine a `SamplerTable`, under diffusers' names.

    The defaults are those of `DDIMScheduler` and `DDPMScheduler`, which agree in every field that both have; `from_scheduler_config`
    applies the defaults of other classes. No scheduler class has all fields. Each sampler reads the fields of the scheduler that it
    corresponds to: as in diffusers, a model's `clip_sample` does not affect DPM-Solver++, and its `use_karras_sigmas` does not affect DDIM.

    Attributes:
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: the spacing of the noise levels; at most one.
        lambda_min_clipped: lowest half log-SNR at which DPM-Solver++ may start; None sets no bound.
        solver_type: that of DPM-Solver++ (`midpoint`, `heun`), of UniPC (`bh1`, `bh2`) or of DEIS; others mean the sampler's default.
        original_inference_steps: steps of the chain that LCM and TCD were distilled from; theirs are some of its timesteps.
        timestep_scaling: factor of the timestep in the boundary condition of LCM.
        shift: timestep shift of flow matching; values above 1 spend more of the chain at high noise.
        mu: shift of flow matching that belongs to the size of the samples and replaces `shift`; None is no such shift.
        mu_tokens: tokens of a sample, for models whose `mu` follows from them and from the steps of the chain (FLUX.2); else None.
        time_shift_type: whether the shift is `exp(mu)` or `mu`.
        shift_terminal: level of the last step, to which shifted levels are stretched; None leaves them.
        sigma_min, sigma_max: range of the noise levels of a network trained on sigmas (EDM, consistency models); None for betas and flows.
            Its timesteps count levels from lowest to highest, evenly in log sigma, and chains visit what lies between them too.
        rho: exponent of the spacing `use_karras_sigmas`.
        whole_timesteps: whether the network knows whole timesteps alone, because it looks them up in a table.
        last_sigma: level of the last step before any shift: that of the lowest training timestep, or `1 / steps`, as some pipelines ask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train_timesteps: PositiveInt = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: BetaSchedule = "linear"
    trained_betas: tuple[Beta, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: NonNegativeInt = 0
    clip_sample: bool = True
    clip_sample_range: PositiveFloat = 1.0
    set_alpha_to_one: bool = True
    variance_type: VarianceType = "fixed_small"
    skip_prk_steps: bool = True
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    final_sigmas_type: FinalSigmas = "zero"
    lambda_min_clipped: float | None = None
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    shift: PositiveFloat = 1.0
    original_inference_steps: PositiveInt = 50
    timestep_scaling: PositiveFloat = 10.0
    mu: float | None = None
    mu_tokens: PositiveInt | None = None
    time_shift_type: TimeShift = "exponential"
    shift_terminal: Annotated[float, Field(ge=0, lt=1)] | None = None
    last_sigma: LastSigma = "timestep"
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None
    rho: PositiveFloat = 7.0
    whole_timesteps: bool = False

    @field_validator("lambda_min_clipped")
    @classmethod
    def _no_bound_is_none(cls, bound: float | None) -> float | None:
        """Map minus infinity, which diffusers writes but strict JSON does not allow, to None."""
        return None if bound == -float("inf") else bound

    @model_validator(mode="after")
    def _one_beta_per_timestep(self) -> Self:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UsageError(
                "The length of trained_betas does not match the number of training timesteps.",
                found=f"{len(self.trained_betas)} betas",
                expected=f"num_train_timesteps = {self.num_train_timesteps}",
                mend="set num_train_timesteps to the number of betas",
            )
        return self

    @model_validator(mode="after")
    def _one_spacing(self) -> Self:
        wanted = [name for name in get_args(Spacing) if getattr(self, name)]
        if len(wanted) > 1:
            raise UsageError("The noise levels have one spacing.", found=" and ".join(wanted), expected="at most one of them")
        return self

    @model_validator(mode="after")
    def _a_range_of_sigmas(self) -> Self:
        low, high = self.sigma_min, self.sigma_max
        if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
            raise UsageError(
                "The noise levels have no range.",
                found=f"sigma_min = {low}, sigma_max = {high}",
                expected="two numbers that rise, or neither",
            )
        return self

    @property
    def on_sigmas(self) -> bool:
        """Whether the network was trained on sigmas rather than on timesteps."""
        return self.sigma_min is not None

    @property
    def spacing(self) -> Spacing | None:
        """The setting that spaces the noise levels; None if they are those of the timesteps."""
        return next((name for name in get_args(Spacing) if getattr(self, name)), None)

    @property
    def clip(self) -> float | None:
        """Bound of the predicted clean sample; None without clipping."""
        return self.clip_sample_range if self.clip_sample else None

    def for_steps(self, steps: int) -> Self:
        """Return the schedule for a chain of `steps` steps, with the `mu` of that length where `mu` depends on it."""
        return self if self.mu_tokens is None else self.model_copy(update={"mu": mu_of_steps(self.mu_tokens, steps)})

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any], tokens: int | None = None) -> Self:
        """Build the schedule from a diffusers `scheduler_config.json`, ignoring keys that do not affect it.

        Args:
            config: content of the file.
            tokens: tokens of one sample in a network that has tokens, on which `use_dynamic_shifting` depends; else None.

        Fields that the file omits get the defaults of its scheduler class; a switch that is null is off, as in diffusers. An unknown class
        must state its betas, and does not clip.

        Raises:
            UsageError: a value is unknown; or the configuration needs a sampler that is not a table of coefficients (dynamic thresholding,
                a learned variance) or uses unsupported noise levels; or the model was not trained on betas or a flow (EDM, VE).
        """
        refuse_unsupported(config, tokens_known=tokens is not None)
        switches = {name for name, field in cls.model_fields.items() if field.annotation is bool}
        settings, mu = settings_of(config, cls.model_fields, switches), dynamic_mu(config, tokens)
        try:
            return cls(**(settings if mu is None else {**settings, "mu": mu}))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"The scheduler configuration has an invalid {field}.",
                found=repr(first["input"]),
                expected=first["msg"],
                mend=f"correct {field} in scheduler_config.json",
            ) from error
