"""Read the tensors and the settings of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.errors import MissingBackendError, PtqdError, UsageError
from engines.networks.lora.adapter_settings import AdapterSettings
from engines.networks.lora.lora_keys import PEFT_PREFIX
from engines.untrusted.plain_file import open_plain
from engines.untrusted.untrusted_json import json_object, read_json_object

PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""The two files of an adapter that PEFT saved."""

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Metadata key under which diffusers stores the settings."""

NUMBERS: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
}  # fmt: skip
"""Types of tensors that numpy has, by safetensors' names."""

BFLOAT16 = "BF16"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it is on the disk.

    Attributes:
        path: path of the weights.
        files: every file that was read.
        tensors: the tensors by key, in float32.
        settings: settings of its training.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Float32]
    settings: AdapterSettings


def read_lora_file(path: Path) -> LoraFile:
    """Read a safetensors file, or the one in a folder that PEFT or diffusers saved.

    Raises:
        UsageError: there is no such file, or its settings are not supported.
        PtqdError: a file cannot be read.
        MissingBackendError: safetensors is not installed.
    """
    weights = _weights_in(path) if path.is_dir() else path
    if not weights.is_file():
        raise UsageError(
            "The LoRA is missing.", found=f"no file {weights}", expected="a safetensors file", mend="correct the path of the LoRA"
        )
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
        mend="name one safetensors file",
    )


def _read(path: Path) -> tuple[dict[str, Float32], Mapping[str, Any]]:
    """Return the tensors and the settings in the metadata. NumPy's own reader of safetensors knows no bfloat16, so bytes are read."""
    try:
        from safetensors import SafetensorError, deserialize, safe_open
    except ImportError as error:
        raise MissingBackendError(
            "LoRA files need the package safetensors.", found=str(error), mend="pip install 'ptqd-export[lora]'"
        ) from error
    try:
        with safe_open(path, "numpy") as file:
            metadata = json_object((file.metadata() or {}).get(METADATA, "{}").encode(), path, PtqdError)
        with open_plain(path) as plain:
            stored: list[tuple[str, Mapping[str, Any]]] = deserialize(plain.read())  # type: ignore[no-untyped-call]
        return {key: _array(one) for key, one in stored}, metadata
    except (SafetensorError, ValueError, OSError) as error:
        raise PtqdError(
            "The LoRA cannot be read.",
            found=f"{path}: {error}",
            expected="a safetensors file",
            mend="copy the file again; if it is of another format, such as .bin or .pt, save it as safetensors first",
        ) from error


def _array(stored: Mapping[str, Any]) -> Float32:
    """Return a stored tensor in float32.

    Raises:
        ValueError: its type is not supported.
    """
    kind, data, shape = stored["dtype"], stored["data"], stored["shape"]
    if kind == BFLOAT16:  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    if kind not in NUMBERS:
        raise ValueError(f"a tensor of type {kind}")
    values: NDArray[Any] = np.frombuffer(data, NUMBERS[kind]).reshape(shape)
    return values.astype(np.float32)
