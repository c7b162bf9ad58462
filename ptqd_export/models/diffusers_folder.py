"""Read folders that diffusers wrote with `save_pretrained`: their parts, configurations and weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import PtqdError, UsageError
from engines.samplers.few_steps import FEW, FewSteps, few_steps_of
from engines.samplers.levels.noise_schedule import NoiseSchedule
from engines.samplers.of_scheduler import SamplerOf, sampler_of
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.models.known_keys import defaults, is_class, unknown_keys
from ptqd_export.models.pipeline_rules import IMAGE_PIPELINES, KNOWN_PIPELINES, KONTEXT_PIPELINES, SCHEDULER_VALUES, denoiser_values
from ptqd_export.models.tensors.downloaded_file import hub_id
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import DIFFUSERS

if TYPE_CHECKING:
    from torch import nn

INDEX = "model_index.json"
DENOISERS = ("unet", "transformer")
"""Names that pipelines give to their denoiser."""

WITHOUT_TEXT = ("UNet2DModel", "DiTTransformer2DModel")
"""Denoisers that read no text."""

RENAMED: Mapping[tuple[str, Any], str] = {
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}
"""Today's name of a class, by its old name and `norm_type`; diffusers maps them when it loads a model."""


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
        single = self.path / "config.json"
        if single.is_file() and not (self.path / INDEX).is_file() and "_class_name" in read_config(single):
            return ""
        for name in DENOISERS:
            if name in self.parts:
                return name
        parts = (f"{name} ({kind})" for name, kind in self.parts.items())
        raise UsageError(
            "The model folder has no denoiser.",
            found=f"{self.path} with {', '.join(parts) or 'no part that diffusers wrote'}",
            expected="a diffusers pipeline folder with unet/config.json or transformer/config.json, and scheduler/scheduler_config.json",
            mend="set model.path to a folder written by `save_pretrained`, or wrap a network of another kind in a model.factory",
        )

    @cached_property
    def parts(self) -> dict[str, str]:
        """Class names of the parts that have a configuration, by part. If there is a `model_index.json`, only the parts that it lists."""
        listed = None if self.index is None else {name for name, (_, kind) in self._listed.items() if kind is not None}
        configs = {path.parent.name: path for path in sorted(self.path.glob("*/config.json"))}
        return {name: str(read_config(path).get("_class_name")) for name, path in configs.items() if listed is None or name in listed}

    @cached_property
    def index(self) -> Config | None:
        """Content of `model_index.json`; None if there is none."""
        index = self.path / INDEX
        return read_config(index) if index.is_file() else None

    @property
    def _listed(self) -> dict[str, list[Any]]:
        """The parts in `model_index.json`: library and class by name. A part that the pipeline does without has neither."""
        return {name: value for name, value in (self.index or {}).items() if isinstance(value, list) and len(value) == 2}

    @property
    def pipeline(self) -> str | None:
        """Class name of the pipeline; None if there is no `model_index.json`."""
        return None if self.index is None else self.index.get("_class_name")

    @property
    def kind(self) -> str:
        """Class name of the denoiser, by today's name."""
        config = self.config(self.denoiser)
        name = str(config.get("_class_name"))
        return RENAMED.get((name, config.get("norm_type")), name)

    def config(self, part: str) -> Config:
        path = self.path / part / "config.json"
        config = read_config(path)
        return Config(path, config | denoiser_values(self.pipeline, config)) if part in ("", *DENOISERS) else config

    def complete_config(self, part: str) -> Config:
        """Return the configuration of a part, with the defaults of its class for the keys that it lacks."""
        return Config(self.path / part / "config.json", defaults(str(self.config(part)["_class_name"])) | self.config(part))

    @cached_property
    def scheduler(self) -> Config:
        """Configuration of the scheduler, with the class of the pipeline's index and the values that the pipeline writes over it."""
        path = (self.path / "scheduler" if self.denoiser else self.path) / "scheduler_config.json"
        config = read_config(path)
        return Config(path, config | self._scheduler_values(config))

    def _scheduler_values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values by which the pipeline's scheduler differs from its file."""
        listed = self._listed.get("scheduler", (None, None))[1]
        kind = listed or config.get("_class_name")
        wanted = {} if kind is None else {"_class_name": kind}
        written = SCHEDULER_VALUES.get(str(self.pipeline), {}) if is_class(str(kind)) else {}
        wanted |= {key: value for key, value in written.items() if key in defaults(str(kind))}
        return {key: value for key, value in wanted.items() if config.get(key) != value}

    @property
    def sampler(self) -> SamplerOf:
        """The scheduler's sampler; LCM's, if the denoiser is a U-Net of LCM and its scheduler is for models of many steps."""
        found = sampler_of(self.scheduler)
        return SamplerOf("lcm") if self.is_lcm and found.name not in ("lcm", "tcd") else found

    @property
    def is_lcm(self) -> bool:
        """Whether the denoiser is a U-Net of a latent consistency model, which takes the guidance as an input."""
        return bool(self.config(self.denoiser).get("time_cond_proj_dim"))

    def few_steps(self, usual: tuple[int, float] = (FEW, 1.0)) -> FewSteps:
        """Return how to sample the model if it was distilled for few steps; `usual` is what such models of its family take."""
        return few_steps_of(self.scheduler, () if self.kind in WITHOUT_TEXT else self.names, usual, is_lcm=self.is_lcm)

    @property
    def names(self) -> tuple[str, ...]:
        """What the model is called: by its folder or the hub, and by those from which its parts were saved."""
        parts: tuple[Mapping[str, Any], ...] = (self.index or {}, self.config(self.denoiser), self.scheduler)
        written = (Path(str(one["_name_or_path"])) for one in parts if one.get("_name_or_path"))
        saved = (path.parent if path.name in (*DENOISERS, "scheduler") else path for path in written)
        places = (self.path.absolute(), *saved)
        return tuple(dict.fromkeys((hub_id(place) or place.name).rpartition("/")[2] for place in places))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: what the pipeline changes or adds, where no sampler takes the scheduler's steps, keys without effect."""
        changed = self._scheduler_values(read_config(self.path / "scheduler" / "scheduler_config.json")) if self.denoiser else {}
        other, values = changed.pop("_class_name", None), _named(changed)
        unknown = _named(unknown_keys(str(self.scheduler.get("_class_name", "")), self.scheduler))
        return tuple(
            note
            for holds, note in (
                (
                    self.pipeline not in (None, *KNOWN_PIPELINES, *KONTEXT_PIPELINES),
                    f"{self.pipeline} is unknown: what it does around its network is left out",
                ),
                (self.pipeline in IMAGE_PIPELINES, f"{self.pipeline} starts from an image, and `ptqd-run sample` from noise"),
                (
                    self.pipeline in KONTEXT_PIPELINES,
                    f"{self.pipeline} can edit a picture, whose tokens its network reads; `ptqd-run sample` draws from prompts alone",
                ),
                (
                    other,
                    f"the scheduler is {other}, as model_index.json says; scheduler_config.json names another class",
                ),
                (values, f"{self.pipeline} replaces values of scheduler_config.json: {values}"),
                (self.sampler.note, self.sampler.note),
                (unknown, f"scheduler_config.json has keys that its class does not know; they are ignored, as in diffusers: {unknown}"),
            )
            if holds
        )

    @property
    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.from_scheduler_config(self.scheduler)

    def build(self, part: str) -> nn.Module:
        """Build the module of a part from its configuration, without its weights."""
        import diffusers

        network: nn.Module = getattr(diffusers, str(self.config(part)["_class_name"])).from_config(dict(self.config(part)))
        return network

    def load(self, part: str) -> nn.Module:
        """Load the module of a part, in float32."""
        return load_weights(self.path / part, str(self.config(part)["_class_name"]))


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


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
