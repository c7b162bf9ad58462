"""What a pipeline of diffusers changes in the configurations of its parts, whatever their files say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KNOWN_PIPELINES = (
    "DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline", "LDMSuperResolutionPipeline", "DiTPipeline", "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
    "SanaPipeline", "ZImagePipeline", "Flux2Pipeline", "Flux2KleinPipeline", "QwenImagePipeline", "AuraFlowPipeline",
    "LatentConsistencyModelPipeline", "SanaSprintPipeline", "ChromaPipeline",
)  # fmt: skip
"""Pipelines whose networks are sampled here as they are there."""

IMAGE_PIPELINES = tuple(name for name in KNOWN_PIPELINES if name.endswith(("Img2ImgPipeline", "InpaintPipeline")))
"""Pipelines that start from an image."""

EDITING_PIPELINES = ("QwenImageEditPipeline", "QwenImageEditInpaintPipeline", "QwenImageEditPlusPipeline", "QwenImageLayeredPipeline")
"""Pipelines whose networks read the tokens of a picture beside the state, always."""

KONTEXT_PIPELINES = ("FluxKontextPipeline", "FluxKontextInpaintPipeline")
"""Pipelines whose networks read the tokens of a picture if they get one."""

_PLAIN_NOISE = {"steps_offset": 1, "clip_sample": False}

SCHEDULER_VALUES: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": _PLAIN_NOISE,
    "StableDiffusionImg2ImgPipeline": _PLAIN_NOISE,
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}
"""Values that a pipeline writes over those of its scheduler's file, where the scheduler's class knows the key."""

_OLD_SIZES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
_OLD_VERSION, _SIZE = (0, 9), 64


def denoiser_values(pipeline: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a pipeline writes over those of its U-Net's file: before diffusers 0.9, many files had a wrong size."""
    size, version = config.get("sample_size"), str(config.get("_diffusers_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    old = len(numbers) == len(_OLD_VERSION) and numbers < _OLD_VERSION
    return {"sample_size": _SIZE} if pipeline in _OLD_SIZES and old and isinstance(size, int) and size < _SIZE else {}
