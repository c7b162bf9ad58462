"""The section `model`: which network is exported."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field, PositiveInt, model_validator
from pydantic.config import JsonDict, JsonValue

from engines.untrusted.limits import ROWS
from ptqd_export.plan.graph_section import GraphSection
from ptqd_export.plan.plan_errors import expectation
from ptqd_export.plan.section import UNIQUE, Section, WrittenPath

FACTORY = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"


def _function(name: str) -> str:
    if not re.fullmatch(FACTORY, name):
        raise expectation('"package.module:function"')
    return name


FunctionName: TypeAlias = Annotated[str, AfterValidator(_function), Field(json_schema_extra={"pattern": f"^{FACTORY}$"})]


PixelSize: TypeAlias = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
"""Height and width in pixels."""


class LoraSection(Section):
    """Low-rank changes of the weights, fused into the networks before anything else."""

    path: WrittenPath = Field(description="a safetensors file, or a folder that PEFT or diffusers saved, relative to the plan")
    scale: float = Field(default=1.0, description="weight of the change; 1 is the trained change")


ControlKind: TypeAlias = Literal["controlnet", "t2i_adapter"]


class ControlSection(Section):
    """Residuals that the U-Net takes from a control network."""

    kind: ControlKind = Field(
        default="controlnet",
        description="ControlNet, whose residuals go to the skip connections, or T2I adapter, whose features go to blocks",
    )
    path: WrittenPath | None = Field(
        default=None,
        description="folder that the control network was saved in, relative to the plan; it becomes a graph of the bundle. null calibrates "
        "with residuals of zeros, and leaves them to the run time",
    )
    images: WrittenPath | None = Field(
        default=None,
        description="PNG file of a control image, or folder of PNG files, relative to the plan, which the rows of the conditions take in "
        "turn; required with path",
    )
    scale: float = Field(default=1.0, description="factor of the residuals, the pipelines' conditioning scale")

    @model_validator(mode="after")
    def _images_for_a_network(self) -> Self:
        if (self.path is None) != (self.images is None):
            raise expectation('"path" and "images" together, or neither')
        return self


class InpaintSection(Section):
    """Pictures that a network for inpainting is calibrated with."""

    images: WrittenPath = Field(
        description="PNG file, or folder of PNG files, relative to the plan, which the rows of the conditions take in turn"
    )
    masks: WrittenPath = Field(description="the same for masks, white where a picture is repainted")


SOURCES = ("path", "factory", "onnx")
"""Keys of which exactly one says where the network comes from."""


def _given(one: str) -> JsonDict:
    """Return a JSON Schema in which the key `one` has a value and the other sources have none; a graph has a section of its own."""
    kinds: dict[str, JsonValue] = {name: {"type": "string" if name == one else "null"} for name in SOURCES}
    of_graph = one == "onnx"
    required: list[JsonValue] = [one, *(["graph"] if of_graph else [])]
    return {"required": required, "properties": {**kinds, "graph": {"type": "object" if of_graph else "null"}}}


class ModelSection(Section):
    """The trained network."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_given(one) for one in SOURCES]})

    path: WrittenPath | None = Field(
        default=None, description="folder or file of the trained model, relative to the plan, or its id on the Hugging Face hub"
    )
    factory: FunctionName | None = Field(
        default=None,
        description="instead of a path: the function that creates the model, package.module:function, importable from the plan's folder or "
        "the Python path",
    )
    onnx: WrittenPath | None = Field(default=None, description="instead of a path: an ONNX graph in float, relative to the plan")
    graph: GraphSection | None = Field(default=None, description="what the graph does not say about itself; required with onnx")
    null_class: int | None = Field(
        default=None,
        ge=0,
        le=ROWS,
        description='class label that means "no class", for guidance; null takes the model\'s own, if it declares one',
    )
    conditions: WrittenPath | None = Field(
        default=None,
        description="an .npz, relative to the plan, with one array [rows, ...] for each conditioning input, such as encoder_hidden_states "
        "[rows, tokens, dim], and an array null.<input> for guidance",
    )
    prompts: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | WrittenPath | None = Field(
        default=None,
        description="for text models: prompts to calibrate with, or a file with one prompt per line; the bundle then takes prompts too",
    )
    negative_prompt: str | None = Field(
        default=None,
        description="for text models: prompt that guidance steers away from; null takes the pipeline's own, the empty prompt or zeros",
    )
    size: PixelSize | None = Field(
        default=None, description="height and width of the images in pixels, for models that take any; null takes the model's own"
    )
    sizes: Annotated[tuple[PixelSize, ...], Field(strict=False), UNIQUE] = Field(
        default=(), description="instead of a size: several, each [height, width]; samples have the first unless they ask for another"
    )
    encoder: bool = Field(
        default=False, description="for latent models: export the first stage's encoder too, for samples that start from images"
    )
    decoder_tile: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        default="auto",
        description="for latent models: decode and encode images in overlapping tiles with sides of this many pixels; null takes whole "
        "images, and auto those of more pixels than 1024 x 1024 in tiles of 1024",
    )
    preview: WrittenPath | None = Field(
        default=None,
        description="for latent models: folder of an AutoencoderTiny that decodes previews along a chain, relative to the plan, or its id "
        "on the Hugging Face hub",
    )
    lora: LoraSection | None = Field(default=None, description="a LoRA to fuse into the networks before they are traced")
    control: ControlSection | None = Field(
        default=None, description="for U-Nets of Stable Diffusion: take the residuals of a ControlNet or a T2I adapter as further inputs"
    )
    inpaint: InpaintSection | None = Field(
        default=None,
        description="for U-Nets with further channels for a mask and a masked picture, with prompts: pictures to calibrate with; null "
        "repaints everything",
    )

    @property
    def all_sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes of the images, the first one first; empty for the model's own."""
        return self.sizes if self.size is None else (self.size,)

    @model_validator(mode="after")
    def _conditions_or_prompts(self) -> Self:
        if self.prompts is not None and self.conditions is not None:
            raise expectation('"prompts" or "conditions", not both')
        if self.negative_prompt is not None and self.prompts is None:
            raise expectation('"prompts" together with "negative_prompt"')
        if self.path is None and (self.prompts is not None or self.lora is not None):
            raise expectation('a "path" together with "prompts" or "lora"')
        if self.path is None and self.control is not None:
            raise expectation('a "path" together with "control"')
        if self.prompts is None and self.inpaint is not None:
            raise expectation('"prompts" together with "inpaint"')
        if self.path is None and self.all_sizes:
            raise expectation('a "path" together with "size" or "sizes"')
        if self.size is not None and self.sizes:
            raise expectation('"size" or "sizes", not both')
        if len(set(self.sizes)) < len(self.sizes):
            raise expectation('"sizes" that are all different')
        if len(self.sizes) > 1 and self.control is not None:
            raise expectation('one size together with "control", whose residuals belong to a size')
        if self.path is None and (self.encoder or self.preview is not None):
            raise expectation('a "path" together with "encoder" or "preview"')
        return self

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(getattr(self, name) is not None for name in SOURCES) != 1:
            raise expectation(f"one of {', '.join(SOURCES)}")
        if (self.graph is None) != (self.onnx is None):
            raise expectation('"onnx" together with "graph"')
        return self
