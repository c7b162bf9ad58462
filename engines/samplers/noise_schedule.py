"""The noise schedule that a model was trained with, as diffusers writes it to `scheduler_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from engines.errors import UsageError

BetaSchedule: TypeAlias = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
PredictionType: TypeAlias = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing: TypeAlias = Literal["leading", "trailing", "linspace"]
VarianceType: TypeAlias = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"]

# A beta of exactly 1 is a terminal signal-to-noise ratio of zero.
Beta: TypeAlias = Annotated[float, Field(gt=0, le=1)]

_LEARNED_VARIANCE = {"learned": "fixed_small", "learned_range": "fixed_large"}
_SCHEDULES_WITHOUT_BETAS = ("FlowMatch", "EDM")


class NoiseSchedule(BaseModel):
    """Everything of a diffusers scheduler that decides a `SamplerTable`, under diffusers' names.

    The defaults are those of `DDIMScheduler` and `DDPMScheduler`, which agree in every field that both have. Only DDPM has
    `variance_type` and the `sigmoid` betas; only DDIM has `set_alpha_to_one`, and DDPM behaves as if it were true.
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

    @model_validator(mode="after")
    def _one_beta_per_timestep(self) -> Self:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise UsageError(
                "trained_betas does not hold one beta per training timestep",
                found=f"{len(self.trained_betas)} betas",
                expected=f"num_train_timesteps = {self.num_train_timesteps}",
                mend="set num_train_timesteps to the number of betas",
            )
        return self

    @property
    def clip(self) -> float | None:
        """Bound of the predicted clean sample, or None."""
        return self.clip_sample_range if self.clip_sample else None

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> Self:
        """The schedule in a diffusers `scheduler_config.json`; keys that only steer another sampler's walk are left aside.

        Raises:
            UsageError: a value is unknown, or the sampler it asks for is no table of coefficients (dynamic thresholding,
                a learned variance) or has no betas (flow matching, EDM).
        """
        _refuse_what_is_no_table(config)
        try:
            return cls(**{key: value for key, value in config.items() if key in cls.model_fields})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"the scheduler configuration has an unusable {field}",
                found=repr(first["input"]),
                expected=first["msg"],
                mend=f"correct {field} in scheduler_config.json",
            ) from error


def _refuse_what_is_no_table(config: Mapping[str, Any]) -> None:
    scheduler = str(config.get("_class_name", ""))
    if scheduler.startswith(_SCHEDULES_WITHOUT_BETAS):
        raise UsageError(
            "the model was not trained on a schedule of betas",
            found=scheduler,
            expected="the scheduler_config.json of a model trained on betas, such as DDPMScheduler's",
        )
    if config.get("thresholding"):
        raise UsageError(
            "dynamic thresholding depends on the sample, so no table of coefficients can hold it",
            found="thresholding = true",
            expected="thresholding = false",
            mend="set thresholding to false and clip_sample to true for the fixed bound clip_sample_range",
        )
    variance_type = config.get("variance_type")
    if variance_type in _LEARNED_VARIANCE:
        raise UsageError(
            "a learned variance comes out of the network at every step, so no table of coefficients can hold it",
            found=f"variance_type = {variance_type}",
            expected="fixed_small, fixed_small_log, fixed_large or fixed_large_log",
            mend=f'set variance_type to "{_LEARNED_VARIANCE[variance_type]}"; the network\'s variance channels are then not used',
        )
