"""A pipeline's text encoders: they turn prompts into conditions for calibration in torch, and ship as files for run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from engines.bundle.manifest import TextEncoderRecord, TextRecord
from engines.errors import UsageError
from engines.networks.conditioning import Conditioning
from engines.networks.prompts import TextModel, TextPart, read_prompts
from ptqd_export.models.conditions import IMAGE, REFINER_SIZES, TIME_IDS, ConditionInput
from ptqd_export.models.diffusers_folder import INDEX, DiffusersFolder, read_config
from ptqd_export.models.lora import Lora
from ptqd_export.models.module_checks import check_finite
from ptqd_export.models.text.text_encoders import Layer, TextEncoderModule, TextFolders, find_text_folders

TEXT = "text"
"""The bundle's folder for graphs and tokenizers of text encoders."""

Fixed: TypeAlias = Mapping[str, tuple[float, ...]]
"""Values of a conditioning input that no prompt changes, by its name."""

SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Aesthetic scores of the prompt and of the negative prompt in `time_ids` of SDXL's refiner: the pipeline's defaults."""

LATENT_FACTOR = 8
"""Pixels per latent, along each side, if the pipeline has no first stage that says otherwise; diffusers assumes the same."""


@dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into conditions as the model's own pipeline does. Nothing is loaded before `load`, or kept afterwards.

    Attributes:
        folders: folders of the text encoders, in the order in which their hidden states are concatenated.
        layer: layer whose hidden states the network takes.
        fixed: conditioning inputs that are the same for every prompt.
        null_fixed: those of them that differ for the negative prompt.
        zero_without_negative: without a negative prompt the null row is zeros, not the empty prompt.
        lora: LoRA to fuse into the encoders, or None.
    """

    folders: tuple[TextFolders, ...]
    layer: Layer
    fixed: Fixed
    null_fixed: Fixed
    zero_without_negative: bool
    lora: Lora | None

    def load(self) -> LoadedText:
        """Load the encoders and tokenizers. Raises what the loading of their folders, `Lora.fuse` and `check_finite` raise."""
        tokenizers = tuple(one.load_tokenizer() for one in self.folders)
        return LoadedText(self, tuple(self._module(one) for one in self.folders), tokenizers)

    def _module(self, folders: TextFolders) -> TextEncoderModule:
        module = folders.load(self.layer)
        if self.lora is not None:
            self.lora.fuse(folders.name, module.network)
        check_finite(module.network, folders.name, None if self.lora is None else self.lora.path)
        return module


@dataclass(frozen=True)
class LoadedText:
    """Text encoders in torch, and tokenizers in the form that the bundle ships."""

    source: PromptEncoder
    modules: tuple[TextEncoderModule, ...]
    tokenizers: tuple[Any, ...]

    @property
    def record(self) -> TextRecord:
        """The manifest's record of the text encoders."""
        encoders = tuple(
            TextEncoderRecord(
                graph=f"{TEXT}/{folders.encoder.name}.onnx",
                tokenizer=f"{TEXT}/{folders.tokenizer.name}.json",
                tokens=tokenizer.truncation["max_length"],
                inputs=module.inputs,
            )
            for folders, module, tokenizer in zip(self.source.folders, self.modules, self.tokenizers, strict=True)
        )
        source = self.source
        return TextRecord(
            encoders=encoders,
            fixed=dict(source.fixed),
            null_fixed=dict(source.null_fixed),
            zero_without_negative=source.zero_without_negative,
        )

    def condition(self, prompts: Sequence[str], negative: str | None) -> Conditioning:
        """See `engines.networks.prompts.TextModel.condition`."""
        parts = (TextPart(tokenizer, module.encode) for tokenizer, module in zip(self.tokenizers, self.modules, strict=True))
        return TextModel(self.record, tuple(parts)).condition(prompts, negative)


def find_prompts(path: Path, inputs: Sequence[ConditionInput], lora: Lora | None) -> PromptEncoder:
    """Find the text encoders in a pipeline's folder.

    Args:
        path: folder of the pipeline.
        inputs: conditioning inputs of the pipeline's network.
        lora: see `PromptEncoder`.

    Raises:
        UsageError: the model takes no text, its pipeline has no text encoders, or it also takes an image.
    """
    if any(one.name == IMAGE for one in inputs):
        raise UsageError(
            "This network takes an image beside its prompt.",
            found=f"model.prompts for {path}",
            expected=f"model.conditions, an .npz with {', '.join(map(str, inputs))}",
            mend="encode prompts and images yourself, one row for each pair, and name the file as model.conditions",
        )
    folders = find_text_folders(path)
    if not folders:
        raise UsageError(
            "The model has no text encoder.",
            found=f"model.prompts, but no text_encoder/ in {path}",
            expected="the folder of a Stable Diffusion or SDXL pipeline",
            mend="leave model.prompts out of the plan; prepared embeddings go into model.conditions",
        )
    sizes = next((one.shape for one in inputs if one.name == TIME_IDS), None)
    if sizes is None:
        return PromptEncoder(folders, "last", {}, {}, zero_without_negative=False, lora=lora)
    zeros = bool(read_config(path / INDEX).get("force_zeros_for_empty_prompt", True))
    fixed, null_fixed = _time_ids(_image_size(DiffusersFolder(path)), refines=sizes == (REFINER_SIZES,))
    return PromptEncoder(folders, "penultimate", fixed, null_fixed, zero_without_negative=zeros, lora=lora)


def _time_ids(size: tuple[float, float], *, refines: bool) -> tuple[Fixed, Fixed]:
    """Return `time_ids` of an uncropped image, and those of the negative prompt where they differ."""
    if refines:
        return {TIME_IDS: (*size, 0.0, 0.0, SCORE)}, {TIME_IDS: (*size, 0.0, 0.0, NEGATIVE_SCORE)}
    return {TIME_IDS: (*size, 0.0, 0.0, *size)}, {}


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
