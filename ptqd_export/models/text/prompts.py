"""A pipeline's text encoders: they turn prompts into conditions for calibration in torch, and ship as files for run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from engines.arrays import Float32, Int64
from engines.bundle.manifest import FixedValue, TextEncoderRecord, TextRecord
from engines.errors import UsageError
from engines.networks.conditioning import Conditioning
from engines.networks.prompts import TextModel, TextPart, read_prompts
from ptqd_export.models.conditions import EMBEDDINGS, IMAGE, POOLED, REFINER_SIZES, TIME_IDS, ConditionInput, guidance_values
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.lora import Lora
from ptqd_export.models.module_checks import check_finite
from ptqd_export.models.text.text_encoders import TextEncoderModule, TextFolders
from ptqd_export.models.text.text_use import CLIP_PROJECTED, PENULTIMATE, TextUse
from ptqd_export.models.text.tokenizer import PortableTokenizer

TEXT = "text"
"""The bundle's folder for graphs and tokenizers of text encoders."""

Fixed: TypeAlias = Mapping[str, FixedValue]
"""Values of a conditioning input that no prompt changes, by its name."""

STABLE_DIFFUSION = (TextUse("text_encoder", {EMBEDDINGS: "last"}),)
SDXL_REFINER = (TextUse("text_encoder_2", {EMBEDDINGS: PENULTIMATE, POOLED: "projected"}, kinds=(CLIP_PROJECTED,)),)
SDXL = (TextUse("text_encoder", {EMBEDDINGS: PENULTIMATE}), *SDXL_REFINER)
"""How the pipelines of U-Nets use their text encoders."""

SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Aesthetic scores of the prompt and of the negative prompt in `time_ids` of SDXL's refiner: the pipeline's defaults."""

LATENT_FACTOR = 8
"""Pixels per latent, along each side, if the pipeline has no first stage that says otherwise; diffusers assumes the same."""


@dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into conditions as the model's own pipeline does. Encoders are loaded, used and freed one after the other.

    Attributes:
        path: folder of the pipeline.
        uses: its text encoders, in the order in which their outputs are joined.
        absent: text encoders that it was saved without, whose tokens are zeros.
        widths: width of the conditioning inputs [tokens, width] that absent encoders leave to zeros, by name.
        fixed: conditioning inputs that are the same for every prompt.
        null_fixed: those of them that differ for the negative prompt.
        zero_without_negative: without a negative prompt the null row is zeros, not the empty prompt.
        lora: LoRA to fuse into the encoders, or None.
    """

    path: Path
    uses: tuple[TextUse, ...]
    absent: tuple[TextUse, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    fixed: Fixed = field(default_factory=dict)
    null_fixed: Fixed = field(default_factory=dict)
    zero_without_negative: bool = False
    lora: Lora | None = None

    @property
    def folders(self) -> tuple[TextFolders, ...]:
        return tuple(TextFolders(self.path, use.folder) for use in self.uses)

    def load(self) -> LoadedText:
        """Load the tokenizers. Raises what `TextFolders.load_tokenizer` raises."""
        return LoadedText(self, tuple(one.load_tokenizer(use) for one, use in zip(self.folders, self.uses, strict=True)))

    def module(self, use: TextUse) -> TextEncoderModule:
        """Load an encoder. Raises what `TextFolders.load`, `Lora.fuse` and `check_finite` raise."""
        module = TextFolders(self.path, use.folder).load(use)
        if self.lora is not None:
            self.lora.fuse(use.folder, module.network)
        check_finite(module.network, use.folder, None if self.lora is None else self.lora.path)
        return module


@dataclass(frozen=True)
class LoadedText:
    """Text encoders, and tokenizers in the form that the bundle ships."""

    source: PromptEncoder
    tokenizers: tuple[PortableTokenizer, ...]

    @property
    def record(self) -> TextRecord:
        """The manifest's record of the text encoders."""
        source = self.source
        encoders = tuple(
            TextEncoderRecord(
                graph=f"{TEXT}/{folders.encoder.name}.onnx",
                tokenizer=f"{TEXT}/{folders.tokenizer.name}.json",
                tokens=tokenizer.length,
                inputs=tuple(use.gives),
                takes_mask=use.takes_mask,
                mask_input=use.mask_input,
                mask_padding=use.mask_padding,
                joins=use.joins,
                lowercase=use.lowercase,
                form=tokenizer.forms.form,
                null_form=tokenizer.forms.null_form,
            )
            for folders, use, tokenizer in zip(source.folders, source.uses, self.tokenizers, strict=True)
        )
        return TextRecord(
            encoders=encoders,
            fixed=dict(source.fixed),
            null_fixed=dict(source.null_fixed),
            padded={name: (_tokens(name, encoders, source.absent), width) for name, width in source.widths.items()},
            zero_without_negative=source.zero_without_negative,
        )

    def condition(self, prompts: Sequence[str], negative: str | None) -> Conditioning:
        """See `engines.networks.prompts.TextModel.condition`."""
        record, parts = self.record, []
        for use, tokenizer, one in zip(self.source.uses, self.tokenizers, record.encoders, strict=True):
            encoder = _LoadedOnUse(self.source, use)
            parts.append(TextPart.of(one, tokenizer.tokenizer, encoder, encoder.release))
        return TextModel(record, tuple(parts)).condition(prompts, negative)


class _LoadedOnUse:
    """A text encoder in torch that is loaded by its first call."""

    def __init__(self, source: PromptEncoder, use: TextUse) -> None:
        self._source, self._use = source, use
        self._module: TextEncoderModule | None = None

    def __call__(self, ids: Int64, /, *mask: Int64) -> dict[str, Float32]:
        if self._module is None:
            self._module = self._source.module(self._use)
        return self._module.encode(ids, *mask)

    def release(self) -> None:
        self._module = None


def _tokens(name: str, encoders: Sequence[TextEncoderRecord], absent: Sequence[TextUse]) -> int:
    """Return the tokens of a conditioning input, those of absent encoders included."""
    giving = [one for one in encoders if name in one.inputs]
    return sum(one.kept for i, one in enumerate(giving) if i == 0 or one.joins == "behind") + sum(
        use.tokens or 0 for use in absent if name in use.gives
    )


def find_prompts(
    path: Path,
    inputs: Sequence[ConditionInput],
    texts: tuple[TextUse, ...],
    lora: Lora | None,
    guidance: float | None,
    size: tuple[int, int] | None = None,
) -> PromptEncoder:
    """Find the text encoders in a pipeline's folder.

    Args:
        path: folder of the pipeline.
        inputs: conditioning inputs of the pipeline's network.
        texts: how the pipeline uses its text encoders; empty for the pipelines of U-Nets.
        lora: see `PromptEncoder`.
        guidance: guidance scale, for a network that takes it as an input; else None.
        size: height and width of the images in pixels; None takes the model's own.

    Raises:
        UsageError: the model takes no text, its pipeline lacks a text encoder, or it also takes an image.
    """
    if any(one.name == IMAGE for one in inputs):
        raise UsageError(
            "This network takes an image beside its prompt.",
            found=f"model.prompts for {path}",
            expected=f"model.conditions, an .npz with {', '.join(map(str, inputs))}",
            mend="encode prompts and images yourself, one row for each pair, and name the file as model.conditions",
        )
    found = PromptEncoder(path, texts) if texts else _of_u_net(path, inputs, size)
    saved = DiffusersFolder(path).parts
    lacking = [use.folder for use in found.uses if use.folder not in saved and not use.optional]
    if lacking:
        raise UsageError(
            "The model has no text encoder.",
            found=f"model.prompts, but no {', '.join(f'{name}/' for name in lacking)} in {path}",
            expected="the folder of a whole pipeline",
            mend="leave model.prompts out of the plan; prepared embeddings go into model.conditions",
        )
    absent = tuple(use for use in found.uses if use.folder not in saved)
    widths = {one.name: one.shape[-1] for one in inputs if any(one.name in use.gives for use in absent)}
    return replace(
        found,
        uses=tuple(use for use in found.uses if use.folder in saved),
        absent=absent,
        widths={name: width for name, width in widths.items() if isinstance(width, int)},
        fixed={**found.fixed, **({} if guidance is None else guidance_values(inputs, guidance))},
        lora=lora,
    )


def _of_u_net(path: Path, inputs: Sequence[ConditionInput], size: tuple[int, int] | None) -> PromptEncoder:
    """Return the text encoders of Stable Diffusion, of SDXL or of its refiner."""
    sizes = next((one.shape for one in inputs if one.name == TIME_IDS), None)
    if sizes is None:
        return PromptEncoder(path, STABLE_DIFFUSION)
    refines, folder = sizes == (REFINER_SIZES,), DiffusersFolder(path)
    zeros = bool(folder.index is None or folder.index.get("force_zeros_for_empty_prompt", True))
    fixed, null_fixed = _time_ids(_image_size(folder) if size is None else size, refines=refines)
    uses = SDXL_REFINER if refines else SDXL
    return PromptEncoder(path, uses, fixed=fixed, null_fixed=null_fixed, zero_without_negative=zeros)


def _time_ids(size: tuple[float, float], *, refines: bool) -> tuple[Fixed, Fixed]:
    """Return `time_ids` of an uncropped image, and those of the negative prompt where they differ."""
    height, width = map(float, size)
    if refines:
        return {TIME_IDS: (height, width, 0.0, 0.0, SCORE)}, {TIME_IDS: (height, width, 0.0, 0.0, NEGATIVE_SCORE)}
    return {TIME_IDS: (height, width, 0.0, 0.0, height, width)}, {}


def _image_size(folder: DiffusersFolder) -> tuple[float, float]:
    """Return height and width of the image of a whole sample: the pipeline's default for original and target size."""
    size, factor = folder.config(folder.denoiser)["sample_size"], LATENT_FACTOR
    if "vae" in folder.parts:
        factor = 2 ** (len(folder.config("vae")["block_out_channels"]) - 1)
    height, width = (size, size) if isinstance(size, int) else size
    return float(height * factor), float(width * factor)


def calibration_prompts(prompts: tuple[str, ...] | Path) -> tuple[str, ...]:
    """Return the plan's prompts, read from a file if the plan names one."""
    return read_prompts(prompts) if isinstance(prompts, Path) else prompts
