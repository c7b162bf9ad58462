"""The plan: what a user asks for, as data. `plan.json` is read here and nowhere else."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

from calib.placement import HighPrecision
from calib.precision import FLOAT8, FLOAT_WIDTHS, GRAMMAR, PATTERN, Form, Precision, nearest_name
from engines.backends.onnxruntime_session import Provider
from engines.errors import UsageError
from engines.limits import BATCH, CHAIN_STEPS, ROWS
from engines.samplers import SAMPLERS
from engines.samplers.noise_schedule import PredictionType, TimestepSpacing
from engines.untrusted_json import read_json_object
from ptqd_export.plan_errors import Problem, expectation, expectations, plan_error
from ptqd_export.targets import TARGETS

FULL_PRECISION = "fp32"
DEVICE = r"^(cpu|cuda(:\d+)?)$"
FACTORY = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"


def _registered_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise expectation(" or ".join(f'"{known}"' for known in SAMPLERS))
    return name


def _known_precision(name: str) -> str:
    try:
        Precision.parse(name)
    except UsageError:
        raise expectation(f'{GRAMMAR}; did you mean "{nearest_name(name)}"?') from None
    return name


def _all_different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise expectation("names that are all different")
    return names


def _device(name: str) -> str:
    if not re.fullmatch(DEVICE, name):
        raise expectation('"cpu", "cuda" or "cuda:0"')
    return name


_READERS = {
    "clip_sample": [name for name, sampler in SAMPLERS.items() if sampler.clips],
    "use_karras_sigmas": [name for name, sampler in SAMPLERS.items() if sampler.karras],
}
"""The samplers to which a field says something."""


def _function(name: str) -> str:
    if not re.fullmatch(FACTORY, name):
        raise expectation('"package.module:function"')
    return name


WrittenPath: TypeAlias = Annotated[str, Field(min_length=1)]
FunctionName: TypeAlias = Annotated[str, AfterValidator(_function), Field(json_schema_extra={"pattern": f"^{FACTORY}$"})]
PrecisionName: TypeAlias = Annotated[str, AfterValidator(_known_precision), Field(json_schema_extra={"pattern": PATTERN})]


Cost: TypeAlias = Literal["bit_operations", "time"]
"""What a budget is counted in."""

UNIQUE = Field(json_schema_extra={"uniqueItems": True})


class Section(BaseModel):
    """Part of a plan: immutable, no unknown keys, and no silent conversion of one type into another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LoraSection(Section):
    """Low-rank changes of the weights, fused into the networks before anything else."""

    path: WrittenPath = Field(description="a safetensors file, relative to the plan")
    scale: float = Field(default=1.0, description="weight of the change; 1 is the trained one")


def _given(one: str, other: str) -> JsonDict:
    """Of two keys, this one has a value and the other none, in the terms of JSON Schema."""
    return {"required": [one], "properties": {one: {"type": "string"}, other: {"type": "null"}}}


class ModelSection(Section):
    """The trained network."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_given("path", "factory"), _given("factory", "path")]})

    path: WrittenPath | None = Field(default=None, description="folder or file of the trained model, relative to the plan")
    factory: FunctionName | None = Field(
        default=None,
        description="instead of a path: the function that makes the model, package.module:function, importable from the plan's folder or "
        "the Python path",
    )
    null_class: int | None = Field(
        default=None,
        ge=0,
        le=ROWS,
        description='class label that means "no class", for guidance; null takes the last of the model\'s labels',
    )
    conditions: WrittenPath | None = Field(
        default=None,
        description="an .npz, relative to the plan, with one array [rows, ...] for each conditioning input, such as encoder_hidden_states "
        "[rows, tokens, dim], and an array null.<input> for guidance",
    )
    prompts: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | WrittenPath | None = Field(
        default=None,
        description="for text models: prompts to calibrate with, or a file with one a line; the bundle then takes prompts too",
    )
    negative_prompt: str | None = Field(
        default=None, description="for text models: what guidance leads away from; null is the pipeline's own, the empty prompt or zeros"
    )
    lora: LoraSection | None = Field(default=None, description="a LoRA to fuse into the networks before they are traced")

    @model_validator(mode="after")
    def _conditions_or_prompts(self) -> Self:
        if self.prompts is not None and self.conditions is not None:
            raise expectation('"prompts" or "conditions", not both')
        if self.negative_prompt is not None and self.prompts is None:
            raise expectation('"prompts" beside "negative_prompt"')
        if self.factory is not None and (self.prompts is not None or self.lora is not None):
            raise expectation('a "path" beside "prompts" and "lora"')
        return self

    @model_validator(mode="after")
    def _path_or_factory(self) -> Self:
        if (self.path is None) == (self.factory is None):
            raise expectation("either path or factory")
        return self


class SamplerSection(Section):
    """The walk from noise to sample."""

    name: Annotated[str, AfterValidator(_registered_sampler)] = Field(description="sampler, such as ddim, dpm++2m or euler-ancestral")
    steps: int = Field(ge=1, le=CHAIN_STEPS, description="number of denoising steps")
    eta: float = Field(
        default=None,
        validate_default=True,
        ge=0,
        le=1,
        description="share of the ancestral noise: 0 is deterministic, 1 is ancestral; null takes the sampler's own",
    )
    guidance: float = Field(
        default=1.0, ge=0, description="scale of classifier-free guidance; 1 is none, and needs one network call a step, not two"
    )
    timestep_spacing: TimestepSpacing | None = Field(default=None, description="overrides the model's scheduler; null keeps its own")
    clip_sample: bool | None = Field(default=None, description="overrides the model's scheduler; null keeps its own")
    prediction_type: PredictionType | None = Field(default=None, description="overrides the model's scheduler; null keeps its own")
    use_karras_sigmas: bool | None = Field(default=None, description="overrides the model's scheduler; null keeps its own")

    @property
    def overrides(self) -> dict[str, object]:
        """What is to be otherwise than the model's scheduler says, by field of its `NoiseSchedule`."""
        fields = {"timestep_spacing", "clip_sample", "prediction_type", "use_karras_sigmas"}
        return self.model_dump(include=fields, exclude_none=True)

    @field_validator("eta", mode="before")
    @classmethod
    def _own_eta(cls, eta: object, info: ValidationInfo) -> object:
        if eta is not None:
            return eta
        sampler = SAMPLERS.get(info.data.get("name", ""))
        return sampler.eta if sampler is not None else 0.0  # an unknown sampler has an error of its own already

    @field_validator("eta")
    @classmethod
    def _eta_that_the_sampler_has(cls, eta: float, info: ValidationInfo) -> float:
        sampler = SAMPLERS.get(info.data.get("name", ""))
        if sampler is not None and not sampler.any_eta and eta != sampler.eta:
            raise expectation(f"{sampler.eta:g} or null beside the sampler {info.data['name']}")
        return eta

    @field_validator("clip_sample", "use_karras_sigmas")
    @classmethod
    def _only_where_it_says_something(cls, wanted: bool | None, info: ValidationInfo) -> bool | None:
        name, readers = info.data.get("name", ""), _READERS[str(info.field_name)]
        if wanted and name in SAMPLERS and name not in readers:
            raise expectation(f"false or null beside the sampler {name}; true is for {', '.join(readers)}")
        return wanted


class ReconstructionSection(Section):
    """Learned rounding; used where `rounding` is not `nearest`."""

    samples: int = Field(default=256, ge=1, le=ROWS, description="states, drawn across the timesteps, that a layer or block is fitted to")
    iterations: int = Field(default=500, ge=1, le=ROWS, description="optimizer steps for each layer or block")
    batch_size: int = Field(default=16, ge=1, le=BATCH, description="states in one optimizer step")
    activation_scales: bool = Field(default=True, description="learn the scales of the activations too")
    memory_gib: float = Field(
        default=4.0, gt=0, description="most memory for the stored inputs and outputs of a block; what does not fit lies in files"
    )


class QuantizationSection(Section):
    """How scales and integers are found, and what is left alone."""

    weight_scale: Literal["mse", "max"] = Field(
        default="mse", description="scale of a weight channel: least squared error, or the largest value"
    )
    activation_scale: Literal["mse", "max"] = Field(
        default="mse", description="scale of an activation: least squared error, or the largest value"
    )
    rounding: Literal["nearest", "layer", "block"] = Field(
        default="nearest",
        description="nearest; or learned, so that the outputs of each layer (AdaRound) or of each block (BRECQ) change least",
    )
    reconstruction: ReconstructionSection = Field(default=ReconstructionSection(), description="how learned rounding is learned")
    split_concatenations: bool = Field(
        default=False, description="quantize the parts of a concatenated input apart (skip connections of a U-Net)"
    )
    channel_scaling: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="move outlier channels from activations into weights, with this exponent (0.5 is usual); null does not",
    )
    activation_steps: Literal["all", "used"] = Field(
        default="all",
        description="fit a precision's activation ranges on the states of all steps, or of those that a fixed policy gives it",
    )
    keep_float: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="patterns (as in fnmatch) of layer names kept in float"
    )
    keep_8bit_weights: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="patterns (as in fnmatch) of layer names whose weights have 8 bits at every precision"
    )
    integer_layers: Literal["all", "faster"] = Field(
        default="all",
        description="compute in integers wherever the target can, or only in layers that the build measures to be faster so, here",
    )


class CalibrationSection(Section):
    """What the statistics are measured on."""

    samples: int = Field(default=512, ge=1, le=ROWS, description="samples that walk the sampler for the correction's statistics")
    batch_size: int = Field(default=64, ge=1, le=BATCH, description="samples in one network call")
    activation_samples: int = Field(default=256, ge=1, le=ROWS, description="states, drawn across the timesteps, for the activation ranges")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the calibration samples")
    trajectory: Literal["quantized", "fp"] = Field(
        default="quantized",
        description="whose states are visited: the corrected quantized sampler's, or full precision's (the reference code's way)",
    )
    device: Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": DEVICE})] = Field(
        default="cpu", description="where PyTorch observes and reconstructs: cpu, cuda or cuda:0"
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of PyTorch's network while it observes and reconstructs")


class CorrectionSection(Section):
    """What is done on the host about the quantization noise."""

    mode: Literal["none", "ptqd", "signed", "joint", "mmse"] = Field(
        default="joint", description="correction of the network output: ptqd is the paper's"
    )
    parts: Annotated[tuple[Literal["gain", "offset"], ...], Field(strict=False), AfterValidator(_all_different), UNIQUE] = Field(
        default=("gain", "offset"), description="parts of the correction of the output; fewer than both are for ablations"
    )
    variance: Literal["schedule", "shift", "none"] = Field(
        default="schedule",
        description="take what quantization added out of the sampler's noise; shift: and treat the rest as a higher noise level; or do not",
    )


class StepsSection(Section):
    """Which precision runs at which step."""

    policy: Literal["snr", "budget", "fixed"] = Field(
        default="snr",
        description="snr: chosen from measured noise (the paper); budget: least predicted error at a cost; fixed: the plan lists them",
    )
    precisions: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        default=None, description='for policy fixed: one name for all steps, or one for each; names from the plan\'s precisions, or "fp32"'
    )

    cost: Cost = Field(default="bit_operations", description="for policy budget: what is counted, bit operations or measured milliseconds")
    budget: float | None = Field(default=None, gt=0, description="for policy budget: cost of the chain as a share of full precision's")

    @model_validator(mode="after")
    def _budget_where_asked(self) -> Self:
        if (self.policy == "budget") != (self.budget is not None):
            raise expectation('"budget" beside the policy "budget", and only there')
        return self

    @model_validator(mode="after")
    def _listed_where_fixed(self) -> Self:
        if self.policy == "fixed" and self.precisions is None:
            raise expectation('"precisions" beside the policy "fixed"')
        if self.policy != "fixed" and self.precisions is not None:
            raise expectation(f'no "precisions" beside the policy "{self.policy}", or the policy "fixed"')
        return self


class BatchSection(Section):
    """Samples that a chain may walk at once."""

    min: int = Field(default=1, ge=1, le=BATCH, description="fewest samples in one network call")
    opt: int = Field(default=8, ge=1, le=BATCH, description="samples that the engines are tuned for")
    max: int = Field(default=64, ge=1, le=BATCH, description="most samples in one network call; memory grows with it")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise expectation("min, opt and max in this order")
        return self


class TargetSection(Section):
    """Where the engines run."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"] = Field(description="runtime")
    provider: Provider = Field(default="CPU", description="device of ONNX Runtime: CPU, or CUDA for an NVIDIA GPU")
    threads: int | None = Field(
        default=None, ge=1, le=1024, description="threads of one engine on ONNX Runtime; null: all cores that this process may use"
    )
    benchmark_batch: int = Field(default=8, ge=1, le=BATCH, description="batch size at which engines are timed")
    high_precision: HighPrecision = Field(
        default=None,
        validate_default=True,
        description="type of what is not quantized, written into the graphs; null takes the target's own: fp16 on TensorRT, else fp32",
    )
    batch: BatchSection | None = Field(
        default=None,
        validate_default=True,
        description="for TensorRT: batch sizes that its engines take; null for the target that takes any, else every default",
    )
    workspace_gib: float | None = Field(
        default=None, gt=0, description="for TensorRT: most memory that its builder may plan with, in GiB; null: all of the device's"
    )

    @field_validator("provider")
    @classmethod
    def _provider_of_onnxruntime(cls, provider: Provider, info: ValidationInfo) -> Provider:
        target = TARGETS.get(info.data.get("name", ""))
        if provider != "CPU" and target is not None and target.profiled:
            raise expectation(f'"CPU" beside the target {target.name}, whose engines run on the GPU anyway')
        return provider

    @field_validator("high_precision", mode="before")
    @classmethod
    def _own_high_precision(cls, chosen: object, info: ValidationInfo) -> object:
        target = TARGETS.get(info.data.get("name", ""))
        if chosen is None:
            return "fp32" if target is None else target.placement.high_precisions[0]  # an unknown target has an error of its own already
        return chosen

    @field_validator("high_precision")
    @classmethod
    def _fits_the_target(cls, chosen: HighPrecision, info: ValidationInfo) -> HighPrecision:
        target = TARGETS.get(info.data.get("name", ""))
        if target is not None and chosen not in target.placement.high_precisions:
            known = " or ".join(f'"{name}"' for name in target.placement.high_precisions)
            raise expectation(f"{known} beside the target {target.name}")
        return chosen

    @field_validator("batch")
    @classmethod
    def _profile_where_engines_have_one(cls, batch: BatchSection | None, info: ValidationInfo) -> BatchSection | None:
        target = TARGETS.get(info.data.get("name", ""))
        if target is None or target.profiled:
            return batch or (None if target is None else BatchSection())
        if batch is not None:
            raise expectation(f"nothing beside the target {target.name}, whose engines take any batch")
        return None

    @field_validator("workspace_gib")
    @classmethod
    def _workspace_where_engines_are_built(cls, gib: float | None, info: ValidationInfo) -> float | None:
        target = TARGETS.get(info.data.get("name", ""))
        if gib is not None and target is not None and not target.profiled:
            raise expectation(f"nothing beside the target {target.name}, which builds no engines ahead of time")
        return gib


def _having(precision: str) -> str:
    """The targets with engines of a float precision."""
    return " or ".join(f'"{name}"' for name, target in TARGETS.items() if precision in target.placement.high_precisions)


def _storing(form: Form) -> str:
    """The targets whose quantized values can be of a form."""
    return " or ".join(f'"{name}"' for name, target in TARGETS.items() if form in target.placement.forms)


class Plan(Section):
    """What `ptqd-export build` is to do. Paths are kept as they were written; `PlanFile` resolves them."""

    model: ModelSection = Field(description="the trained network")
    sampler: SamplerSection = Field(description="the walk from noise to sample")
    precisions: Annotated[
        tuple[PrecisionName, ...],
        Field(strict=False, min_length=1),
        UNIQUE,
        AfterValidator(_all_different),
    ] = Field(description=f"precisions to build, each {GRAMMAR}")
    quantization: QuantizationSection = Field(default=QuantizationSection(), description="how scales are found, and what is left alone")
    calibration: CalibrationSection = Field(default=CalibrationSection(), description="what the statistics are measured on")
    correction: CorrectionSection = Field(default=CorrectionSection(), description="what is done on the host about the quantization noise")
    steps: StepsSection = Field(default=StepsSection(), description="which precision runs at which step")
    target: TargetSection = Field(description="where the engines run")
    output: WrittenPath = Field(description="folder of the bundle, relative to the plan")

    @model_validator(mode="after")
    def _steps_known_where_used(self) -> Self:
        if self.quantization.activation_steps == "used" and self.steps.policy != "fixed":
            raise expectation('the policy "fixed" beside quantization.activation_steps "used": the steps must be known first')
        return self

    @field_validator("target")
    @classmethod
    def _target_has_what_is_asked_of_it(cls, target: TargetSection, info: ValidationInfo) -> TargetSection:
        steps, precisions, found = info.data.get("steps"), info.data.get("precisions") or (), TARGETS[target.name]
        problems: list[Problem] = [
            (("name",), target.name, f"a target with {name} engines beside the precision {name}: {_having(name)}")
            for name in precisions
            if name in FLOAT_WIDTHS and name not in found.placement.high_precisions
        ]
        if FLOAT8 in precisions and Precision.parse(FLOAT8).form not in found.placement.forms:
            problems.append((("name",), target.name, f"a target that runs 8-bit floats beside the precision {FLOAT8}: {_storing('e4m3')}"))
        if steps is not None and steps.policy == "budget" and steps.cost == "time" and found.stand_in:
            problems.append((("name",), target.name, 'a target that the build can time beside steps.cost "time"; or cost "bit_operations"'))
        quantization = info.data.get("quantization")
        if quantization is not None and quantization.integer_layers == "faster" and found.stand_in:
            asked = 'a target that the build can time beside quantization.integer_layers "faster"; or "all"'
            problems.append((("name",), target.name, asked))
        if problems:
            raise expectations(problems)
        return target

    @field_validator("steps")
    @classmethod
    def _fixed_steps_fit(cls, steps: StepsSection, info: ValidationInfo) -> StepsSection:
        sampler, precisions = info.data.get("sampler"), info.data.get("precisions")
        if steps.precisions is None or sampler is None or precisions is None:
            return steps  # nothing to compare, or what to compare with has its own error already
        count, rows = len(steps.precisions), SAMPLERS[sampler.name].rows(sampler.steps)
        known = dict.fromkeys((*precisions, FULL_PRECISION))
        problems: list[Problem] = [
            (("precisions", index), name, f"one of {', '.join(known)}") for index, name in enumerate(steps.precisions) if name not in known
        ]
        if count not in (1, rows):
            problems.append((("precisions",), steps.precisions, f"1 name, or {rows} (one for each step), not {count}"))
        if problems:
            raise expectations(problems)
        return steps

    def resolved_json(self) -> str:
        """The plan with every default written out: ASCII, and the same bytes for the same plan, wherever it lies."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


@dataclass(frozen=True)
class PlanFile:
    """A plan and where it was read, which is what its relative paths mean.

    Attributes:
        plan: as written.
        folder: of the plan file.
        output: of the command line, instead of the plan's; relative to the current folder.
    """

    plan: Plan
    folder: Path
    output: Path | None = None

    @property
    def model_path(self) -> Path:
        """Of a model that is not made by a factory."""
        assert self.plan.model.path is not None
        return self.folder / self.plan.model.path

    @property
    def conditions_path(self) -> Path | None:
        return None if self.plan.model.conditions is None else self.folder / self.plan.model.conditions

    @property
    def prompts(self) -> tuple[str, ...] | Path | None:
        """The plan's prompts, or the file that holds them."""
        written = self.plan.model.prompts
        return self.folder / written if isinstance(written, str) else written

    @property
    def lora_path(self) -> Path | None:
        return None if self.plan.model.lora is None else self.folder / self.plan.model.lora.path

    @property
    def output_path(self) -> Path:
        return Path(os.path.normpath(self.folder / self.plan.output)) if self.output is None else self.output


def load_plan(path: Path) -> PlanFile:
    """Read a plan.

    Raises:
        UsageError: it is missing, is not a JSON object, or is not a valid plan; then every problem is listed.
    """
    if not path.is_file():
        raise UsageError(
            "there is no plan", found=f"no file {path}", expected="a plan.json", mend="write one with `ptqd-export init`, or correct --plan"
        )
    try:
        plan = Plan.model_validate(read_json_object(path))
    except ValidationError as error:
        raise plan_error(error, Plan, path) from error
    return PlanFile(plan, path.absolute().parent)
