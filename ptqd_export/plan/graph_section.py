"""The section `model.graph`: what an ONNX graph does not say about itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from engines.samplers.levels.noise_schedule import Beta, BetaSchedule, PredictionType
from engines.untrusted.limits import ROWS, TRAIN_TIMESTEPS
from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.section import Section, WrittenPath

TimeUnit: TypeAlias = Literal["timestep", "fraction", "sigma", "log_sigma", "c_noise", "c_noise_1000"]
StateForm: TypeAlias = Literal["scaled", "added"]
Preconditioning: TypeAlias = Literal["edm", "consistency"]
Sizes: TypeAlias = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class NoiseSection(Section):
    """The noise that the network was trained on: betas, or a range of sigmas."""

    num_train_timesteps: PositiveInt = Field(
        default=1000,
        le=TRAIN_TIMESTEPS,
        description="number of training timesteps; for sigmas and flows, the number of levels that timesteps of the chain are counted in",
    )
    beta_schedule: BetaSchedule = Field(default="linear", description="shape of the betas")
    beta_start: Beta = Field(default=0.0001, description="first beta")
    beta_end: Beta = Field(default=0.02, description="last beta")
    trained_betas: Annotated[tuple[Beta, ...], Field(strict=False)] | None = Field(
        default=None, description="all betas, in place of the three fields above"
    )
    alphas_cumprod: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] | None = Field(
        default=None, description="cumulative alphas of the training timesteps, falling, in place of betas"
    )
    sigma_min: PositiveFloat | None = Field(
        default=None, description="lowest noise level, for networks trained on sigmas (EDM, consistency models)"
    )
    sigma_max: PositiveFloat | None = Field(default=None, description="highest noise level, where chains begin")
    rho: PositiveFloat = Field(default=7.0, description="exponent of the spacing of the levels between both")
    shift: PositiveFloat = Field(default=1.0, description="for flows: shift of the levels towards noise")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.sigma_min is None) != (self.sigma_max is None):
            raise expectation("both sigma_min and sigma_max, or neither")
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min >= self.sigma_max:
            raise expectation("a sigma_max above sigma_min")
        lists = [len(found) for found in (self.trained_betas, self.alphas_cumprod) if found is not None]
        if len(lists) + (self.sigma_min is not None) > 1:
            raise expectation("only one of trained_betas, alphas_cumprod and sigmas")
        if lists and lists[0] != self.num_train_timesteps:
            raise expectation(f"as many values as num_train_timesteps, {self.num_train_timesteps}")
        found = self.alphas_cumprod or ()
        if any(later >= earlier for earlier, later in pairwise(found)):
            raise expectation("alphas_cumprod that fall")
        return self


class GraphInputSection(Section):
    """An input of the graph beside the state and the time."""

    labels: Annotated[PositiveInt, Field(le=ROWS)] | None = Field(
        default=None, description="number of class labels, for an input of whole numbers that is one; then no table of conditions is needed"
    )
    shape: Annotated[tuple[NonNegativeInt, ...], Field(strict=False)] | None = Field(
        default=None, description="shape of one sample without the batch, where the graph leaves sizes open"
    )
    value: float | None = Field(default=None, description="one value for every sample and step: the bundle then has no such input")


class GraphSection(Section):
    """What an ONNX graph does not say about itself. Names that are null are recognised in the graph."""

    scheduler: WrittenPath | None = Field(
        default=None, description="the noise that the network was trained on: a scheduler_config.json of diffusers, relative to the plan"
    )
    schedule: NoiseSection | None = Field(default=None, description="instead of a scheduler: the numbers of the noise")
    predicts: PredictionType | None = Field(
        default=None,
        description="what the output is: epsilon, v_prediction, sample (the clean sample) or flow; null takes the scheduler_config.json's, "
        "sample for sigmas, and epsilon for betas",
    )
    state: str | None = Field(default=None, description="input that takes the noisy sample")
    time: str | None = Field(default=None, description="input that takes the timestep or the noise level")
    time_unit: TimeUnit | None = Field(
        default=None,
        description="what it takes: timestep (a training timestep), fraction (the timestep divided by num_train_timesteps; on a flow, the "
        "share of noise), sigma, log_sigma (its natural logarithm), c_noise (log_sigma / 4), or c_noise_1000 (250 log_sigma); null follows "
        "from the name",
    )
    state_form: StateForm | None = Field(
        default=None,
        description="scaled: the noisy sample has unit variance, sqrt(a) x0 + sqrt(1 - a) eps; added: x0 + sigma eps; null is added for "
        "sigmas and scaled for betas",
    )
    preconditioning: Preconditioning | None = Field(
        default=None,
        description="factors c_in, c_skip, c_out around the graph: edm (Karras et al.), consistency (Song et al.); null: inside, or none",
    )
    sigma_data: PositiveFloat = Field(default=0.5, description="standard deviation of the data in these factors")
    output: str | None = Field(default=None, description="output to use, if there are several")
    shape: Sizes | None = Field(default=None, description="shape of one state, [channels, ...], where the graph leaves sizes open")
    inputs: dict[str, GraphInputSection] = Field(
        default={}, description="the other inputs, by name, where more is to be said than the graph says"
    )

    @model_validator(mode="after")
    def _sigmas_where_needed(self) -> Self:
        if (self.scheduler is None) == (self.schedule is None):
            raise expectation("either scheduler or schedule")
        flow, sigmas = self.predicts == "flow", self.schedule is not None and self.schedule.sigma_min is not None
        if flow and sigmas:
            raise expectation("no sigmas for a flow: its levels are shares of noise")
        if self.preconditioning is not None and not sigmas:
            raise expectation("a schedule with sigma_min and sigma_max together with preconditioning")
        if self.preconditioning is not None and self.predicts not in (None, "sample"):
            raise expectation('predicts "sample" or null together with preconditioning, which turns the output into the clean sample')
        if flow and self.state_form == "added":
            raise expectation('no state_form "added" for a flow')
        return self
