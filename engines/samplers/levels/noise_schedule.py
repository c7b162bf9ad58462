"""The noise schedule that a model was trained with, as diffusers writes it to `scheduler_config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

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

BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"]
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow"]
TimestepSpacing: TypeAlias = Literal["leading", "trailing", "linspace"]
VarianceType: TypeAlias = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]
FinalSigmas: TypeAlias = Literal["zero", "sigma_min"]
SolverType: TypeAlias = Literal["midpoint", "heun"]

# A beta of exactly 1 means zero terminal signal-to-noise ratio.
Beta: TypeAlias = Annotated[float, Field(gt=0, le=1)]

_NO_CLIP = {"clip_sample": False}
_CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "PNDMScheduler": _NO_CLIP | {"set_alpha_to_one": False, "skip_prk_steps": False},
    "DPMSolverMultistepScheduler": _NO_CLIP | {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": _NO_CLIP | {"timestep_spacing": "linspace"},
    "EulerAncestralDiscreteScheduler": _NO_CLIP | {"timestep_spacing": "linspace"},
    "FlowMatchEulerDiscreteScheduler": _NO_CLIP | {"prediction_type": "flow"},
}
"""Default values of each scheduler class where they differ from those of `NoiseSchedule`."""

_LEARNED_VARIANCE = {"learned": "fixed_small", "learned_range": "fixed_large"}
_SCHEDULES_WITHOUT_BETAS = ("FlowMatch", "EDM")

_PLAIN_VALUES: Mapping[str, tuple[object, ...]] = {
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
}
"""Settings that can change a chain's noise levels or timesteps in ways not supported here, each with the values that change nothing."""

_MEND = {"use_dynamic_shifting": "set use_dynamic_shifting to false and shift to exp(mu) for your image size"}


class NoiseSchedule(BaseModel):
    """All diffusers scheduler settings that determine a `SamplerTable`, under diffusers' names.

    The defaults are those of `DDIMScheduler` and `DDPMScheduler`, which agree in every field that both have; `from_scheduler_config`
    applies the defaults of other classes. No scheduler class has all fields. Each sampler reads the fields of the scheduler that it
    corresponds to: as in diffusers, a model's `clip_sample` does not affect DPM-Solver++, and its `use_karras_sigmas` does not affect DDIM.

    Attributes:
        lambda_min_clipped: lowest half log-SNR at which DPM-Solver++ may start; None sets no bound.
        shift: timestep shift of flow matching; values above 1 spend more of the chain at high noise.
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
    final_sigmas_type: FinalSigmas = "zero"
    lambda_min_clipped: float | None = None
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    shift: PositiveFloat = 1.0

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

    @property
    def clip(self) -> float | None:
        """Bound of the predicted clean sample; None without clipping."""
        return self.clip_sample_range if self.clip_sample else None

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the schedule from a diffusers `scheduler_config.json`, ignoring keys that do not affect it.

        Fields that the file omits get the defaults of its scheduler class. An unknown class gets those of a class that does not clip.

        Raises:
            UsageError: a value is unknown; or the configuration needs a sampler that is not a table of coefficients (dynamic thresholding,
                a learned variance) or uses unsupported noise levels; or the model was not trained on betas or a flow (EDM).
        """
        _refuse_unsupported(config)
        given = {key: value for key, value in config.items() if key in cls.model_fields and value is not None}
        try:
            return cls(**{**_CLASS_DEFAULTS.get(str(config.get("_class_name", "")), _NO_CLIP), **given})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"The scheduler configuration has an invalid {field}.",
                found=repr(first["input"]),
                expected=first["msg"],
                mend=f"correct {field} in scheduler_config.json",
            ) from error


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    scheduler = str(config.get("_class_name", ""))
    if scheduler.startswith(_SCHEDULES_WITHOUT_BETAS) and scheduler not in _CLASS_DEFAULTS:
        raise UsageError(
            "The model was trained with an unsupported noise schedule.",
            found=scheduler,
            expected="the scheduler_config.json of a model trained on betas, such as DDPMScheduler's, or FlowMatchEulerDiscreteScheduler's",
        )
    for key, plain in _PLAIN_VALUES.items():
        if config.get(key, plain[0]) not in plain:
            raise UsageError(
                f"No sampler supports the scheduler configuration's {key}.",
                found=f"{key} = {json.dumps(config[key])}",
                expected=f"{key} = {json.dumps(plain[0])}",
                mend=_MEND.get(key, f"set {key} to {json.dumps(plain[0])} in scheduler_config.json, if the model samples well that way"),
            )
    if config.get("thresholding"):
        raise UsageError(
            "Dynamic thresholding depends on the sample, so a table of coefficients cannot express it.",
            found="thresholding = true",
            expected="thresholding = false",
            mend="set thresholding to false and clip_sample to true for the fixed bound clip_sample_range",
        )
    variance_type = config.get("variance_type")
    if variance_type in _LEARNED_VARIANCE:
        raise UsageError(
            "The network outputs a learned variance at every step, so a table of coefficients cannot express it.",
            found=f"variance_type = {variance_type}",
            expected="fixed_small, fixed_small_log, fixed_large or fixed_large_log",
            mend=f'set variance_type to "{_LEARNED_VARIANCE[variance_type]}"; the network\'s variance channels are then not used',
        )
