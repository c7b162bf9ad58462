"""Read the tensors and the settings of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from engines.errors import PtqdError, UsageError
from engines.untrusted.untrusted_json import json_object, read_json_object
from ptqd_export.models.lora.adapter_settings import AdapterSettings
from ptqd_export.models.lora.lora_keys import PEFT_PREFIX

PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""The two files of an adapter that PEFT saved."""

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores the settings."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it is on the disk.

    Attributes:
        path: path of the weights.
        files: every file that was read.
        tensors: the tensors by key.
        settings: settings of its training.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    settings: AdapterSettings


def read_lora_file(path: Path) -> LoraFile:
    """Read a safetensors file, or the one in a folder that PEFT or diffusers saved.

    Raises:
        UsageError: there is no such file, or its settings are not supported.
        PtqdError: a file cannot be read.
    """
    weights = _weights_in(path) if path.is_dir() else path
    if not weights.is_file():
        raise UsageError("The LoRA is missing.", found=f"no file {weights}", expected="a safetensors file", mend="correct model.lora.path")
    tensors, metadata = _read(weights)
    if not tensors:
        raise UsageError("The LoRA is empty.", found=f"{weights}: no tensors", expected="changes of layers", mend="copy the file again")
    of_peft = weights.name == PEFT_WEIGHTS or any(key.startswith(PEFT_PREFIX) for key in tensors)
    settings = weights.with_name(PEFT_SETTINGS)
    if of_peft and settings.is_file():
        values = {**metadata, **read_json_object(settings, infinities=True)}
        return LoraFile(weights, (weights, settings), tensors, AdapterSettings(str(settings), values, complete=True))
    return LoraFile(weights, (weights,), tensors, AdapterSettings(str(weights), metadata, complete=of_peft))


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (folder / name).is_file()]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        "The folder is not that of one LoRA.",
        found=f"{folder} with {', '.join(sorted(path.name for path in folder.iterdir())) or 'no files'}",
        expected=f"either {PEFT_WEIGHTS} or {DIFFUSERS_WEIGHTS}",
        mend="name a safetensors file as model.lora.path",
    )


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json_object((file.metadata() or {}).get(METADATA, "{}").encode(), path, PtqdError)
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118  # not a mapping
    except (SafetensorError, ValueError) as error:
        raise PtqdError(
            "The LoRA cannot be read.",
            found=f"{path}: {error}",
            expected="a safetensors file",
            mend="copy the file again; if it is of another format, such as .bin or .pt, save it as safetensors first",
        ) from error
