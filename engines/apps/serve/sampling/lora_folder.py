"""The LoRAs that clients of a server may name: those in one folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engines.errors import UnknownNameError, UsageError
from engines.networks.lora.lora_bytes import DIFFUSERS_WEIGHTS, PEFT_SETTINGS, PEFT_WEIGHTS
from engines.networks.lora.lora_use import LoraUse

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class LoraFolder:
    """LoRAs by name. Names come from a list of the folder, never from a request, so no request leads outside.

    Attributes:
        folder: the folder.
        entries: the LoRA of each name, relative to the folder: a safetensors file, or a folder that PEFT or diffusers saved.
        files: every file of them, relative to the folder.
    """

    folder: Path = Path()
    entries: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> LoraFolder:
        """List a folder, as it is now.

        Raises:
            UsageError: there is no such folder, it holds no LoRA or two of one name, or a file of a LoRA lies outside.
        """
        if not folder.is_dir():
            raise UsageError("The folder of LoRAs is missing.", found=f"no folder {folder}", expected="a folder with safetensors files")
        entries, files, real = dict[str, str](), list[str](), folder.resolve()
        for name, entry, weights in _found(folder):
            if name in entries:
                raise UsageError("Two LoRAs have the same name.", found=f"{entries[name]} and {entry.name}", mend="rename one of them")
            entries[name] = entry.name
            for path in (weights, weights.with_name(PEFT_SETTINGS)):
                if not path.resolve().is_relative_to(real):
                    raise UsageError(
                        "A LoRA lies outside its folder.",
                        found=f"{path} leads to {path.resolve()}",
                        expected=f"a file in {folder}",
                        mend="replace the link with a copy of the file",
                    )
                if path.is_file():
                    files.append(path.relative_to(folder).as_posix())
        if not entries:
            raise UsageError(
                "The folder of LoRAs is empty.", found=folder, expected="safetensors files, or folders that PEFT or diffusers saved"
            )
        return cls(folder, entries, tuple(dict.fromkeys(files)))

    def use(self, name: str, scale: float) -> LoraUse:
        """Return a LoRA at a scale.

        Raises:
            UsageError: the folder has no LoRA of this name, or the scale is not finite.
        """
        if name not in self.entries:
            raise UnknownNameError("The server has no such LoRA.", found=name, known=self.entries)
        return LoraUse(self.folder / self.entries[name], scale)

    @contextmanager
    def unnamed(self) -> Iterator[None]:
        """Leave the path of the folder out of errors: clients know its LoRAs by their names alone."""
        try:
            yield
        except UsageError as error:
            raise UsageError(str(error).replace(f"{self.folder}/", "")) from error


def _found(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield name, entry and weights of every LoRA in a folder."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix == SUFFIX and entry.is_file():
            yield entry.stem, entry, entry
        inside = [entry / name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (entry / name).is_file()]
        if inside:
            yield entry.name, entry, inside[0]
