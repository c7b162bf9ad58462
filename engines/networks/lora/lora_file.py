"""Read the tensors and the settings of a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.errors import MissingBackendError, PtqdError, UsageError
from engines.networks.lora.adapter_settings import AdapterSettings
from engines.networks.lora.lora_bytes import LoraBytes, unreadable
from engines.networks.lora.lora_keys import kind_of_other, parse_key
from engines.untrusted.untrusted_json import JsonObject, json_object

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
        sha256: SHA-256 of what was read; see `LoraBytes.sha256`.
        tensors: the tensors by key, in float32.
        settings: settings of its training.
    """

    path: Path
    files: tuple[Path, ...]
    sha256: str
    tensors: Mapping[str, Float32]
    settings: AdapterSettings


def read_lora_file(path: Path) -> LoraFile:
    """Read a safetensors file, or the one in a folder that PEFT or diffusers saved.

    Raises:
        UsageError: there is no such file, or its settings are not supported.
        PtqdError: a file cannot be read.
        MissingBackendError: safetensors is not installed.
    """
    stored = LoraBytes.read(path)
    tensors, values = _tensors(stored), _settings_inside(stored)
    if not tensors:
        raise UsageError("The LoRA is empty.", found=f"{stored.path}: no tensors", expected="changes of layers", mend="copy the file again")
    source = stored.path
    if stored.settings_path is not None:
        source = stored.settings_path
        values |= json_object(stored.settings, source, infinities=True)
    return LoraFile(stored.path, stored.files, stored.sha256, tensors, AdapterSettings(str(source), values, complete=stored.of_peft))


def tensors_by_layer(file: LoraFile, refused: Callable[[str], UsageError]) -> dict[tuple[str, str], dict[str, Float32]]:
    """Return the tensors of each layer by `LoraKey.kind`; layers by part of the pipeline and name.

    Args:
        file: the LoRA.
        refused: makes the error for a tensor of an unknown kind from what was found.

    Raises:
        UsageError: a tensor is of an unknown kind, or two keys mean the same.
    """
    found: dict[tuple[str, str], dict[str, Float32]] = {}
    for key, value in file.tensors.items():
        parsed = parse_key(key)
        if parsed is None:
            raise refused(f"{file.path}: {key} ({kind_of_other(key)})")
        tensors = found.setdefault((parsed.part, parsed.layer), {})
        if parsed.kind in tensors:
            raise UsageError(
                "The LoRA changes a layer twice.",
                found=f"{file.path}: {key}, and another key of the same meaning",
                expected="one change of each layer",
                mend="save one adapter alone",
            )
        tensors[parsed.kind] = value
    return found


def _tensors(stored: LoraBytes) -> dict[str, Float32]:
    """Return the tensors. NumPy's own reader of safetensors knows no bfloat16, so bytes are read."""
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise MissingBackendError(
            "LoRA files need the package safetensors.", found=str(error), mend="pip install 'ptqd-export[lora]'"
        ) from error
    try:
        found: list[tuple[str, Mapping[str, Any]]] = deserialize(stored.weights)  # type: ignore[no-untyped-call]  # safetensors has no types
        return {key: _array(one) for key, one in found}
    except (SafetensorError, ValueError) as error:
        raise unreadable(stored.path, error) from error


def _settings_inside(stored: LoraBytes) -> JsonObject:
    """Return the settings in the metadata of the weights."""
    metadata = stored.header.get("__metadata__")
    found = metadata.get(METADATA) if isinstance(metadata, dict) else None
    return json_object(found.encode(), stored.path, PtqdError) if isinstance(found, str) else {}


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
