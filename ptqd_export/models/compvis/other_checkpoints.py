"""Checkpoints without a YAML beside them: the names of their tensors tell what they are, and so what to do with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.errors import UsageError
from ptqd_export.models.tensors.checkpoint import read_tensors

KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "one file of SDXL": (
        ("conditioner.embedders.",),
        "name the folder that `StableDiffusionXLPipeline.from_single_file(FILE).save_pretrained(FOLDER)` of diffusers writes",
    ),
    "one file of Stable Diffusion": (
        ("cond_stage_model.transformer.", "cond_stage_model.model."),
        "name the folder that `StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER)` of diffusers writes",
    ),
    "a LoRA": (
        ("lora_", "unet.down_blocks.", "unet.up_blocks.", "text_encoder.", "base_model."),
        "name the model that it belongs to, and this file as model.lora.path in the plan",
    ),
    "weights of diffusers": (
        ("down_blocks.", "up_blocks.", "encoder.down_blocks.", "decoder.up_blocks.", "transformer_blocks."),
        "name the folder of the pipeline that it belongs to; the file lies there beside its config.json",
    ),
}
"""What a checkpoint is, the begin of names that only this kind has, and what to do with it. The first that fits is taken."""


def no_configuration(checkpoint: Path, expected: str, found: str) -> UsageError:
    """Return the error for a checkpoint without a configuration.

    Raises:
        PtqdError: the checkpoint cannot be read.
    """
    names = read_tensors(checkpoint).keys()
    for kind, (begins, mend) in KINDS.items():
        if any(name.startswith(begins) for name in names):
            return UsageError(
                "This checkpoint cannot be exported as it is.",
                found=f"{checkpoint}: {kind}, with {next(name for name in names if name.startswith(begins))}",
                expected="a CompVis latent diffusion checkpoint beside its YAML, or a folder written by `save_pretrained`",
                mend=mend,
            )
    return UsageError(
        "The checkpoint has no configuration.",
        found=found,
        expected=expected,
        mend=f"copy the YAML that the model was trained with to {checkpoint.with_suffix('.yaml')}",
    )
