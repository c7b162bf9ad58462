"""A LoRA that a user asks for: a file, and how much of its change is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Self, TypeAlias

from engines.errors import UsageError

GivenLoras: TypeAlias = (
    Mapping[str | PathLike[str], float]
    | Mapping[str, float]
    | Mapping[Path, float]
    | Sequence[str | PathLike[str]]
    | str
    | PathLike[str]
    | None
)
"""LoRAs as Python callers give them: scales by file, or files at scale 1."""


@dataclass(frozen=True)
class LoraUse:
    """A LoRA to use.

    Attributes:
        path: a safetensors file, or a folder that PEFT or diffusers saved.
        scale: weight of the change; 1 is the trained change.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise UsageError("The scale of a LoRA is out of range.", found=f"{self.path}: {self.scale}", expected="a finite number")

    def __str__(self) -> str:
        return f"{self.path.name}:{self.scale:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `FILE` or `FILE:SCALE` means. A path with a colon in its name is a path if it exists.

        Raises:
            UsageError: the scale is not a number.
        """
        name, colon, scale = text.rpartition(":")
        if not colon or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(name), float(scale))
        except ValueError as error:
            raise UsageError(
                "The scale of a LoRA is not a number.", found=text, expected="FILE:SCALE, such as style.safetensors:0.8"
            ) from error


def lora_uses(loras: GivenLoras) -> tuple[LoraUse, ...]:
    """Return the LoRAs that a Python caller gives.

    Raises:
        UsageError: they are of another form, or a scale is not finite.
    """
    if loras is None:
        return ()
    files = [loras] if isinstance(loras, (str, PathLike)) else loras
    try:
        uses = files.items() if isinstance(files, Mapping) else ((file, 1.0) for file in files)
        return tuple(LoraUse(Path(path), float(scale)) for path, scale in uses)
    except (TypeError, ValueError) as error:
        raise UsageError(
            "The LoRAs are not given as files.",
            found=f"{str(loras)[:80]} ({error})",
            expected='a file, a list of files, or scales by file such as {"style.safetensors": 0.8}',
        ) from error
