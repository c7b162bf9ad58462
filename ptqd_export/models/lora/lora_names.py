"""What a LoRA is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from engines.networks.lora.lora_bytes import DIFFUSERS_WEIGHTS, PEFT_WEIGHTS, lora_file, unreadable
from ptqd_export.models.tensors.downloaded_file import hub_id

NAMELESS = (DIFFUSERS_WEIGHTS, PEFT_WEIGHTS, "diffusion_pytorch_model.safetensors")
"""File names that say nothing: the LoRA has the name of its folder, or of the model on the hub."""

TITLES = ("ss_output_name", "modelspec.title")
"""Metadata keys under which trainers store what a LoRA is called."""


def lora_names(path: Path) -> tuple[str, ...]:
    """Return what a LoRA is called: by its file or folder, and by its trainer.

    Args:
        path: a safetensors file, or a folder that PEFT or diffusers saved.

    Raises:
        UsageError: there is no such file.
        PtqdError: the file cannot be read.
    """
    file = lora_file(path)
    placed = (hub_id(file) or file.absolute().parent.name).rpartition("/")[2]
    metadata = _metadata(file)
    return (placed if file.name in NAMELESS else file.stem, *(metadata[key] for key in TITLES if key in metadata))


def _metadata(file: Path) -> Mapping[str, str]:
    try:
        with safe_open(file, "numpy") as stored:
            return stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise unreadable(file, error) from error
