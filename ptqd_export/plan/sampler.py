"""The section `sampler`: the walk from noise to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from engines.chain.schedule import SamplerRecord
from engines.samplers import SAMPLERS
from engines.samplers.levels.noise_schedule import PredictionType, Spacing, TimestepSpacing
from engines.untrusted.limits import CHAIN_STEPS
from ptqd_export.plan.plan_errors import expectation, one_of
from ptqd_export.plan.section import Section

SPACINGS: tuple[Spacing, ...] = get_args(Spacing)

_READERS: Mapping[str, Sequence[str]] = {
    "clip_sample": [name for name, sampler in SAMPLERS.items() if sampler.clips],
    **{spacing: [name for name, sampler in SAMPLERS.items() if sampler.spaces] for spacing in SPACINGS},
    "timesteps": [name for name, sampler in SAMPLERS.items() if sampler.timesteps],
    "sigmas": [name for name, sampler in SAMPLERS.items() if sampler.sigmas],
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
        default=None,
        description="clip the predicted clean sample; for ddim, ddpm, heun, lcm, consistency; null keeps what the model's scheduler says",
    )
    prediction_type: PredictionType | None = Field(
        default=None, description="what the network predicts; null keeps what the model's scheduler says"
    )
    use_karras_sigmas: bool | None = Field(
        default=None,
        description="noise levels of Karras et al.; for dpm++, unipc, euler, heun, flow-euler; null keeps what the model's scheduler says",
    )
    use_exponential_sigmas: bool | None = Field(default=None, description="the same, with levels that fall by one factor at every step")
    use_beta_sigmas: bool | None = Field(default=None, description="the same, with levels that are quantiles of a beta distribution")
    timesteps: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] | None = Field(
        default=None, description="timesteps to visit, one for each step, falling; null visits those of the noise schedule"
    )
    sigmas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)] | None = Field(
        default=None, description="noise levels to visit, one for each step, falling; null visits those of the noise schedule"
    )

    @property
    def overrides(self) -> dict[str, object]:
        """The settings that replace those of the model's scheduler, by field of its `NoiseSchedule`."""
        given = self.model_dump(include={"timestep_spacing", "clip_sample", "prediction_type", *SPACINGS}, exclude_none=True)
        spaced = any(given.get(name) for name in SPACINGS)
        return {**dict.fromkeys(SPACINGS, False), **given} if spaced else given

    @property
    def record(self) -> SamplerRecord:
        """The sampler as schedules record it."""
        return SamplerRecord(
            name=self.name, steps=self.steps, eta=self.eta, guidance=self.guidance, timesteps=self.timesteps, sigmas=self.sigmas
        )

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

    @field_validator("clip_sample", *SPACINGS)
    @classmethod
    def _true_only_where_used(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        name, readers = info.data.get("name", ""), _READERS[str(info.field_name)]
        if wanted and name in SAMPLERS and name not in readers:
            raise expectation(f"false or null for the sampler {name}; true is for {', '.join(readers)}")
        return wanted

    @field_validator(*SPACINGS)
    @classmethod
    def _one_spacing(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        before = next((name for name in SPACINGS if name != info.field_name and info.data.get(name)), None)
        if wanted and before is not None:
            raise expectation(f"false or null beside {before}")
        return wanted

    @field_validator("timesteps", "sigmas")
    @classmethod
    def _levels_fit_the_sampler(cls, levels: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        name, field = info.data.get("name", ""), str(info.field_name)
        if levels is None or name not in SAMPLERS:
            return levels
        if name not in _READERS[field]:
            raise expectation(f"null for the sampler {name}; {field} are for {', '.join(_READERS[field])}")
        other = next((key for key in (*SPACINGS, "timesteps") if key != field and info.data.get(key)), None)
        if other is not None:
            raise expectation(f"null beside {other}")
        if len(levels) != info.data.get("steps", len(levels)):
            raise expectation(f"as many as sampler.steps, {info.data['steps']}")
        if any(level <= below for level, below in pairwise(levels)):
            raise expectation("numbers that fall")
        if field == "timesteps" and SAMPLERS[name].timesteps == "whole" and any(level % 1 for level in levels):
            raise expectation(f"whole numbers for the sampler {name}")
        if field == "sigmas" and SAMPLERS[name].predictions == ("flow",) and levels[0] > 1:
            raise expectation(f"shares of noise up to 1 for the sampler {name}")
        return levels
