"""The bytes of a LoRA on the disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engines.errors import PtqdError, UsageError
from engines.networks.lora.lora_keys import PEFT_PREFIX
from engines.untrusted.plain_file import open_plain, read_plain
from engines.untrusted.untrusted_json import SIZE_LIMIT, JsonObject, json_object

PEFT_WEIGHTS, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""The two files of an adapter that PEFT saved."""

DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, eq=False)
class LoraBytes:
    """The files of a LoRA, each read once.

    Attributes:
        path: path of the weights.
        weights: bytes of the weights.
        settings_path: path of PEFT's settings, if they count.
        settings: bytes of these settings.
    """

    path: Path
    weights: bytes
    settings_path: Path | None = None
    settings: bytes = b""

    @classmethod
    def read(cls, path: Path) -> LoraBytes:
        """Read a safetensors file, or the one in a folder that PEFT or diffusers saved, and PEFT's settings beside it.

        Raises:
            UsageError: there is no such file.
            PtqdError: a file cannot be read, or has no header.
        """
        path = lora_file(path)
        settings = path.with_name(PEFT_SETTINGS)
        try:
            with open_plain(path) as file:
                alone = cls(path, file.read())
            if alone.of_peft and settings.is_file():
                return cls(path, alone.weights, settings, read_plain(settings, SIZE_LIMIT))
        except OSError as error:
            raise unreadable(path, error) from error
        return alone

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that was read."""
        return (self.path,) if self.settings_path is None else (self.path, self.settings_path)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the weights, followed by the settings if they count."""
        digest = hashlib.sha256(self.weights)
        digest.update(self.settings)
        return digest.hexdigest()

    @cached_property
    def header(self) -> JsonObject:
        """The header of the weights: an entry for each tensor, and the metadata.

        Raises:
            PtqdError: there is none.
        """
        size = int.from_bytes(self.weights[:8], "little")
        if len(self.weights) < 8 + size:
            raise unreadable(self.path, "no header")
        return json_object(self.weights[8 : 8 + size], f"The header of {self.path}", PtqdError)

    @property
    def of_peft(self) -> bool:
        """Whether PEFT saved the weights."""
        return self.path.name == PEFT_WEIGHTS or any(key.startswith(PEFT_PREFIX) for key in self.header)


def lora_file(path: Path) -> Path:
    """Return the weights of a LoRA: the file itself, or the one in a folder that PEFT or diffusers saved.

    Raises:
        UsageError: there is no such file.
    """
    file = _weights_in(path) if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            "The LoRA is missing.", found=f"no file {file}", expected="a safetensors file", mend="correct the path of the LoRA"
        )
    return file


def unreadable(path: Path, problem: object) -> PtqdError:
    """Return the error for weights that are not those of a safetensors file."""
    return PtqdError(
        "The LoRA cannot be read.",
        found=f"{path}: {problem}",
        expected="a safetensors file",
        mend="copy the file again; if it is of another format, such as .bin or .pt, save it as safetensors first",
    )


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
