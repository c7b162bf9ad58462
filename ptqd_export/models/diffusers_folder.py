"""Read folders that diffusers wrote with `save_pretrained`: their parts, configurations and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import PtqdError, UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.models.known_keys import defaults
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import DIFFUSERS

if TYPE_CHECKING:
    from torch import nn

INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")
"""Names that pipelines give to their denoiser."""


@dataclass(frozen=True)
class DiffusersFolder:
    """The folder of a pipeline, or of a single model with `scheduler_config.json` beside `config.json`."""

    path: Path

    @cached_property
    def denoiser(self) -> str:
        """Name of the denoiser's part; empty if the folder is the model itself.

        Raises:
            UsageError: the folder has no denoiser.
        """
        if (self.path / "config.json").is_file():
            return ""
        for name in DENOISERS:
            if name in self.parts:
                return name
        raise UsageError(
            "The model folder has no denoiser.",
            found=f"{self.path} with {', '.join(self.parts) or 'no part that diffusers wrote'}",
            expected="a diffusers pipeline folder with unet/config.json or transformer/config.json, and scheduler/scheduler_config.json",
            mend="set model.path to a folder written by `save_pretrained`",
        )

    @cached_property
    def parts(self) -> dict[str, str]:
        """Class names of the parts that have a configuration, by part. If there is a `model_index.json`, only the parts that it lists."""
        index = self.path / INDEX
        listed = read_config(index).keys() if index.is_file() else None
        configs = {path.parent.name: path for path in sorted(self.path.glob("*/config.json"))}
        return {name: str(read_config(path).get("_class_name")) for name, path in configs.items() if listed is None or name in listed}

    @cached_property
    def pipeline(self) -> str | None:
        """Class name of the pipeline; None if there is no `model_index.json`."""
        index = self.path / INDEX
        return read_config(index).get("_class_name") if index.is_file() else None

    @property
    def kind(self) -> str:
        """Class name of the denoiser."""
        return str(self.config(self.denoiser).get("_class_name"))

    def config(self, part: str) -> Config:
        return read_config(self.path / part / "config.json")

    def complete_config(self, part: str) -> Config:
        """Return the configuration of a part, with the defaults of its class for the keys that it lacks."""
        return Config(self.path / part / "config.json", defaults(str(self.config(part)["_class_name"])) | self.config(part))

    @cached_property
    def scheduler(self) -> Config:
        folder = self.path / "scheduler" if self.denoiser else self.path
        return read_config(folder / "scheduler_config.json")

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_scheduler_config(self.scheduler)

    def load(self, part: str) -> nn.Module:
        """Load the module of a part, in float32."""
        return load_weights(self.path / part, str(self.config(part)["_class_name"]))


class Config(dict[str, Any]):
    """A JSON configuration of a diffusers folder. Looking up a missing key raises a UsageError."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise UsageError(
            "The model's configuration lacks a key.",
            found=f"no {key} in {self._path}",
            expected="a configuration written by `save_pretrained`",
            mend="save the model again",
        )


def read_config(path: Path) -> Config:
    """Read a JSON configuration of a diffusers folder.

    Raises:
        UsageError: the file is missing.
        PtqdError: the file is damaged.
    """
    if not path.exists():
        raise UsageError(
            "The model folder is missing or incomplete.",
            found=f"no {path}",
            expected="a diffusers pipeline folder with unet/config.json and scheduler/scheduler_config.json",
            mend="set model.path to a folder written by `save_pretrained`",
        )
    return Config(path, read_json_object(path, PtqdError, infinities=True))  # diffusers writes -Infinity for `lambda_min_clipped`


def load_weights(folder: Path, kind: str) -> nn.Module:
    """Load a diffusers module of the class `kind`, in float32. Raises what `load_module` raises."""
    import diffusers

    return load_module(getattr(diffusers, kind), folder, DIFFUSERS, low_cpu_mem_usage=False).float()
