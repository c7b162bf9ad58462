"""The section `sampler`: the walk from noise to sample."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from engines.samplers import SAMPLERS
from engines.samplers.levels.noise_schedule import PredictionType, TimestepSpacing
from engines.untrusted.limits import CHAIN_STEPS
from ptqd_export.plan.plan_errors import expectation, one_of
from ptqd_export.plan.section import Section

_READERS = {
    "clip_sample": [name for name, sampler in SAMPLERS.items() if sampler.clips],
    "use_karras_sigmas": [name for name, sampler in SAMPLERS.items() if sampler.karras],
}
"""The samplers that use a field."""


def _registered_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise expectation(one_of(name, SAMPLERS))
    return name


class SamplerSection(Section):
    """The walk from noise to sample."""

    name: Annotated[str, AfterValidator(_registered_sampler)] = Field(description="the sampler, such as ddim, dpm++2m or euler-ancestral")
    steps: int = Field(ge=1, le=CHAIN_STEPS, description="the number of denoising steps")
    eta: float = Field(
        default=None,
        validate_default=True,
        ge=0,
        le=1,
        description="share of the ancestral noise: 0 is deterministic, 1 is ancestral; null takes the sampler's own",
    )
    guidance: float = Field(
        default=1.0,
        ge=0,
        description="scale of classifier-free guidance; up to 1 is no guidance, with one network call per step instead of two",
    )
    timestep_spacing: TimestepSpacing | None = Field(
        default=None, description="which training timesteps the chain visits; null keeps what the model's scheduler says"
    )
    clip_sample: bool | None = Field(
        default=None, description="clip the predicted clean sample; for ddim and ddpm; null keeps what the model's scheduler says"
    )
    prediction_type: PredictionType | None = Field(
        default=None, description="what the network predicts; null keeps what the model's scheduler says"
    )
    use_karras_sigmas: bool | None = Field(
        default=None, description="noise levels of Karras et al.; for euler and dpm++ samplers; null keeps what the model's scheduler says"
    )

    @property
    def overrides(self) -> dict[str, object]:
        """The settings that replace those of the model's scheduler, by field of its `NoiseSchedule`."""
        fields = {"timestep_spacing", "clip_sample", "prediction_type", "use_karras_sigmas"}
        return self.model_dump(include=fields, exclude_none=True)

    @field_validator("eta", mode="before")
    @classmethod
    def _own_eta(cls, eta: object, info: ValidationInfo) -> object:
        if eta is not None:
            return eta
        sampler = SAMPLERS.get(info.data.get("name", ""))
        return sampler.eta if sampler is not None else 0.0  # an unknown sampler already has an error of its own

    @field_validator("eta")
    @classmethod
    def _eta_fits_the_sampler(cls, eta: float, info: ValidationInfo) -> float:
        sampler = SAMPLERS.get(info.data.get("name", ""))
        if sampler is not None and not sampler.any_eta and eta != sampler.eta:
            raise expectation(f"{sampler.eta:g} or null for the sampler {info.data['name']}")
        return eta

    @field_validator("clip_sample", "use_karras_sigmas")
    @classmethod
    def _true_only_where_used(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        name, readers = info.data.get("name", ""), _READERS[str(info.field_name)]
        if wanted and name in SAMPLERS and name not in readers:
            raise expectation(f"false or null for the sampler {name}; true is for {', '.join(readers)}")
        return wanted
