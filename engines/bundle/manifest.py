"""The manifest of a bundle: what the run time must know before it opens another file."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from engines.bundle.bundle_files import is_plain
from engines.bundle.contract import sealed
from engines.bundle.first_stage_record import DecoderRecord, EncoderRecord
from engines.bundle.image_size import size_name
from engines.chain.features import precision_and_cut
from engines.chain.schedule import Strict
from engines.host.files import write_text
from engines.samplers.levels.noise_schedule import NoiseSchedule, PredictionType
from engines.untrusted.external_data import is_weights_of
from engines.untrusted.limits import FILE_BYTES, ROWS, Batch, Label, Name, Scale, Shape, Timestep

MANIFEST = "manifest.json"

IMAGE = "image"
"""Conditioning input whose channels the network appends to those of the state."""

FORM_LETTERS = 2**16
"""Most letters in front of a prompt, or behind it; the longest known instruction has 1,500."""

FixedValue: TypeAlias = FiniteFloat | tuple[FiniteFloat, ...]
"""Value of a conditioning input that no prompt changes."""


class FileRecord(Strict):
    """Hash and size of one file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[NonNegativeInt, Field(le=FILE_BYTES)]


class InputRecord(Strict):
    """One input of the network besides the state and the timestep; `shape` is that of one sample, without the batch axis."""

    name: Name
    dtype: Literal["int64", "float32"]
    shape: Shape


class ConditioningRecord(Strict):
    """What a sample can be conditioned on: one of `rows` choices, either class labels 0..rows-1 or rows of the arrays in `file`."""

    inputs: Annotated[tuple[InputRecord, ...], Field(min_length=1)]
    rows: Annotated[PositiveInt, Field(le=ROWS)]
    null_class: Label | None = None
    file: Name | None = None


class ControlNetworkRecord(Strict):
    """The control network: its graph, the shape of its images, and the images of the bundle's own rows, which take them in turn.

    The graph takes `control_image` with values in [0, 1] and any of the network's own inputs, and returns all residuals of a sample, one
    behind the other. `images` has them as uint8 [K, H, W, C].
    """

    file: Name
    image_shape: Annotated[Shape, Field(min_length=3, max_length=3)]
    images: Name


class ControlRecord(Strict):
    """Residuals that the network takes besides its conditions, as inputs under diffusers' names. They are zeros where nothing gives them.

    `network` computes them; null if the bundle has no control network.
    """

    inputs: Annotated[tuple[InputRecord, ...], Field(min_length=1)]
    network: ControlNetworkRecord | None = None


class PromptForm(Strict):
    """What stands around a prompt, and the tokens `[from, to)` of the encoder that the network is not given."""

    prefix: Annotated[str, Field(max_length=FORM_LETTERS)] = ""
    suffix: Annotated[str, Field(max_length=FORM_LETTERS)] = ""
    skipped: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)

    @property
    def skips(self) -> int:
        """Number of tokens that the network is not given."""
        return self.skipped[1] - self.skipped[0]


class TextEncoderRecord(Strict):
    """One text encoder: its graph, its tokenizer, the length that prompts are padded to, and the conditioning inputs that it produces.

    `takes_mask` says that its graph also takes the mask of the tokenizer's own tokens. `mask_input` is the conditioning input that is this
    mask, where it lets `mask_padding` tokens of the padding through too. `joins` says where its hidden states go beside those of the
    encoders before it: along the width, or behind their tokens. `lowercase` prompts are written in small letters, without blanks at their
    ends, before they are split. `form` is what stands around them, and `null_form` what stands around the negative prompt; null: the same.
    `least_cosine` is how far weights in 8 bits turned the outputs for the plan's prompts at most; null for weights in float.
    """

    graph: Name
    tokenizer: Name
    tokens: Batch
    inputs: Annotated[tuple[Name, ...], Field(min_length=1)]
    takes_mask: bool = False
    mask_input: Name | None = None
    mask_padding: Annotated[int, Field(ge=0)] = 0
    joins: Literal["beside", "behind"] = "beside"
    lowercase: bool = False
    form: PromptForm = PromptForm()
    null_form: PromptForm | None = None
    least_cosine: FiniteFloat | None = None

    @property
    def kept(self) -> int:
        """Number of tokens that the network is given."""
        return self.tokens - self.form.skips

    @model_validator(mode="after")
    def _skips_within_the_tokens(self) -> Self:
        for form in filter(None, (self.form, self.null_form)):
            if not 0 <= form.skips < self.tokens or form.skipped[1] > self.tokens or form.skips != self.form.skips:
                raise ValueError(f"skips tokens {list(form.skipped)} of {self.tokens}")
        return self


class TextRecord(Strict):
    """How prompts become conditioning: the outputs of several encoders for one input are joined, narrow ones padded with zeros.

    `fixed` inputs are the same for every prompt: a number, or a row of them. `null_fixed` gives those that differ for the negative prompt.
    `padded` gives the shapes [tokens, width] to which inputs are padded with zeros: the place of an encoder that the pipeline does without.
    """

    encoders: Annotated[tuple[TextEncoderRecord, ...], Field(min_length=1)]
    fixed: dict[Name, FixedValue]
    null_fixed: dict[Name, FixedValue] = Field(default_factory=dict)
    padded: dict[Name, Shape] = Field(default_factory=dict)
    zero_without_negative: bool


class ModelRecord(Strict):
    """The network behind every graph.

    `preview` is a small decoder for pictures of states along a chain; null takes `decoder`.
    `guidance_patch` is the side of the patches in which guidance keeps the norm of the conditional output (see
    `engines.chain.norm_guidance`); null if guidance is linear. `size` is [height, width] of the images in pixels, where the plan says it.
    """

    family: Name
    parameters: PositiveInt
    sample_shape: Annotated[Shape, Field(min_length=1)]
    conditioning: ConditioningRecord | None
    noise_schedule: NoiseSchedule
    decoder: DecoderRecord | None = None
    encoder: EncoderRecord | None = None
    preview: DecoderRecord | None = None
    text: TextRecord | None = None
    guidance_patch: PositiveInt | None = None
    size: Annotated[Shape, Field(min_length=2, max_length=2)] | None = None
    control: ControlRecord | None = None

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.guidance_patch is not None and any(side % self.guidance_patch for side in self.sample_shape[1:]):
            raise ValueError(f"a state of {list(self.sample_shape)} has no whole patches of {self.guidance_patch}")
        return self

    @model_validator(mode="after")
    def _tiles_within_the_state(self) -> Self:
        preview = self.image_shape if self.preview is None else self.preview.image_shape
        for part, image in ((self.decoder, self.image_shape), (self.encoder, self.image_shape), (self.preview, preview)):
            if part is not None and part.tile is not None:
                part.tile.check(self.sample_shape[1:], image[1:])
        return self

    @property
    def tile_size(self) -> tuple[int, ...] | None:
        """Height and width in pixels of the tiles that images are decoded in; None if they are decoded whole, or there is no decoder."""
        tile = None if self.decoder is None else self.decoder.tile
        return None if tile is None else tile.pixels(self.sample_shape[1:], self.image_shape[1:])

    @property
    def repaints(self) -> bool:
        """Whether the network takes a mask and the latents of the masked picture beside the state: inpainting with further channels."""
        wanted = (self.sample_shape[0] + 1, *self.sample_shape[1:])
        given = () if self.conditioning is None else self.conditioning.inputs
        return self.decoder is not None and any((one.name, one.shape) == (IMAGE, wanted) for one in given)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the final image: the decoder's output, or the state itself if there is no decoder."""
        return self.sample_shape if self.decoder is None else self.decoder.image_shape

    @property
    def image_size(self) -> tuple[int, ...]:
        """Height and width of the images in pixels."""
        return self.image_shape[1:] if self.size is None else self.size


class PiecesRecord(Strict):
    """A network in pieces, which share the weights of the whole graph.

    `body` runs on every state. `embeddings` maps each of its inputs that depends only on timestep and conditioning to the graph that
    computes it.
    """

    body: Name
    embeddings: Annotated[dict[Name, Name], Field(min_length=1)]


class CutRecord(Strict):
    """A cut of a network: `full` returns its deep features as a second output `kept`, and `reuse` takes them as an input of that name
    instead of computing them. Both read the weights of the precision's own graph.

    `bit_operations_saved_all` is that of a step that reuses features.
    """

    full: Name
    reuse: Name
    bit_operations_saved_all: PositiveFloat


class GroupRecord(Strict):
    """A group of steps with activation scales of its own: the network for timesteps below `below`, down to the next group's bound.

    Its graphs read the integer weights of the precision's own graph.
    """

    below: Annotated[Timestep, Field(gt=0)]
    graph: Name
    pieces: PiecesRecord | None = None
    cuts: dict[Name, CutRecord] = Field(default_factory=dict)


@dataclass(frozen=True)
class NetworkGraphs:
    """The graphs of one group of steps; `below` is infinite for the noisiest. `cuts` are by name."""

    below: float
    graph: str
    pieces: PiecesRecord | None
    cuts: Mapping[str, CutRecord] = field(default_factory=dict)


class PrecisionRecord(Strict):
    """One precision: its graph, its cost relative to the float32 graph, and the versions of the libraries that made the graph
    (empty in bundles of schema version 1).

    `graph`, `pieces` and `cuts` serve every timestep that no group takes. All groups have the same cuts. `weights` is the graph whose file
    of weights all of them read, if that is not `graph`.
    """

    graph: Name
    weight_bits: Annotated[PositiveInt, Field(le=64)]
    activation_bits: Annotated[PositiveInt, Field(le=64)]
    bit_operations_saved: PositiveFloat
    bit_operations_saved_all: PositiveFloat
    pieces: PiecesRecord | None = None
    groups: tuple[GroupRecord, ...] = ()
    cuts: dict[Name, CutRecord] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    weights: Name | None = None

    @field_validator("groups")
    @classmethod
    def _bounds_fall(cls, groups: tuple[GroupRecord, ...]) -> tuple[GroupRecord, ...]:
        bounds = [group.below for group in groups]
        if bounds != sorted(set(bounds), reverse=True):
            raise ValueError(f"the bounds of the groups must fall, not {bounds}")
        return groups

    @model_validator(mode="after")
    def _same_cuts(self) -> Self:
        for group in self.groups:
            if group.cuts.keys() != self.cuts.keys():
                raise ValueError(f"the group below timestep {group.below:g} has other cuts: {sorted(group.cuts)}, not {sorted(self.cuts)}")
        return self

    @property
    def networks(self) -> tuple[NetworkGraphs, ...]:
        """The graphs of every group of steps, the noisiest first; a single one if the precision has no groups."""
        further = (NetworkGraphs(group.below, group.graph, group.pieces, group.cuts) for group in self.groups)
        return (NetworkGraphs(math.inf, self.graph, self.pieces, self.cuts), *further)

    @property
    def weights_of(self) -> str:
        """The graph beside whose file the weights lie."""
        return self.weights or self.graph

    def holds(self, file: str) -> bool:
        """Return whether a file of the bundle is one of the whole graphs, or holds their weights."""
        return file in {network.graph for network in self.networks} or is_weights_of(file, self.weights_of)


def saved_all(precisions: Mapping[str, PrecisionRecord], network: str) -> float:
    """Return by how much a step saves bit operations, for a precision or a precision at a cut, such as `w4a8+skip_3`."""
    precision, cut = precision_and_cut(network)
    record = precisions[precision]
    return record.bit_operations_saved_all if cut is None else record.cuts[cut].bit_operations_saved_all


class ProfileRecord(Strict):
    """Rows per network call that engines are built for. Under guidance a sample takes two rows, so opt and max are twice the plan's."""

    min: Batch
    opt: Batch
    max: Batch


class TargetRecord(Strict):
    """The runtime that the graphs are for, and the settings of its engines."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    provider: Literal["CPU", "CUDA"] = "CPU"
    high_precision: Literal["fp32", "fp16", "bf16"]
    profile: ProfileRecord | None
    workspace_gib: Annotated[float, Field(gt=0)] | None


class SizeRecord(Strict):
    """A further size of images: the network and its graphs at that size. Its schedules and statistics lie in `sizes/HEIGHTxWIDTH`."""

    model: ModelRecord
    precisions: Annotated[dict[Name, PrecisionRecord], Field(min_length=1)]


class Manifest(Strict):
    """Everything that must be known at run time before another file is opened. `model` and `precisions` are those of the first size."""

    schema_version: Literal[1, 2, 3, 4, 5, 6] = 6
    model: ModelRecord
    parameterization: PredictionType
    target: TargetRecord
    placement: Name
    measured_on: Name
    precisions: Annotated[dict[Name, PrecisionRecord], Field(min_length=1)]
    guidance: Scale
    files: dict[Name, FileRecord]
    versions: dict[str, str]
    sizes: tuple[SizeRecord, ...] = ()

    @model_validator(mode="after")
    def _sizes_of_one_network(self) -> Self:
        found = [size_name(model.image_size) for model in self.models]
        if len(set(found)) < len(found):
            raise ValueError(f"every size may be there once, not {', '.join(found)}")
        for one in self.sizes:
            if one.precisions.keys() != self.precisions.keys() or one.model.sample_shape[0] != self.model.sample_shape[0]:
                raise ValueError(f"the network of {size_name(one.model.image_size)} is another: {', '.join(one.precisions)}")
        return self

    @property
    def models(self) -> tuple[ModelRecord, ...]:
        """The network at every size, the first size first."""
        return (self.model, *(one.model for one in self.sizes))

    def bytes_of(self, precisions: Collection[str]) -> int:
        """Return the bytes of the whole graphs of some precisions, with the weights beside them."""
        records = [self.precisions[name] for name in precisions]
        return sum(file.bytes for name, file in self.files.items() if any(record.holds(name) for record in records))

    @field_validator("files")
    @classmethod
    def _stays_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if not is_plain(name):
                raise ValueError(f"{name!r} is not a plain relative path inside the bundle")
        return files


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a bundle's manifest completely or not at all."""
    write_text(folder / MANIFEST, json.dumps(sealed(json.loads(manifest.model_dump_json())), indent=1) + "\n")
