"""A starter plan for a diffusers folder, from its configuration files alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from engines.errors import UsageError
from engines.files import write_text
from engines.samplers import SAMPLERS, NoiseSchedule
from engines.samplers.of_scheduler import sampler_of
from ptqd_export.json_object import read_json_object
from ptqd_export.plan import ModelSection, Plan, SamplerSection, TargetSection

STEPS = 20
GUIDANCE = 1.5
DENOISERS = ("unet", "transformer")
"""Parts of a diffusers pipeline that can be its denoiser."""


def write_starter_plan(model: Path, target: str, path: Path, *, force: bool) -> None:
    """Write a starter plan to `path`.

    Raises:
        UsageError: the model is no diffusers folder, the target is unknown, or a file is in the way and `force` is not set.
    """
    if path.exists() and not force:
        raise UsageError(
            "a file is in the way", found=path, expected="a new file", mend="name another with -o, or overwrite it with --force"
        )
    write_text(path, starter_plan(model, target, path.parent).resolved_json())


def starter_plan(model: Path, target: str, folder: Path) -> Plan:
    """The plan to start from, with paths relative to the folder where it will lie."""
    config, scheduler = _configurations(model)
    schedule, sampler = NoiseSchedule.from_scheduler_config(scheduler), sampler_of(scheduler)
    return Plan(
        model=ModelSection(path=Path(os.path.relpath(model, folder)).as_posix()),
        sampler=SamplerSection(
            name=sampler,
            steps=min(STEPS, schedule.num_train_timesteps),
            eta=1.0 if SAMPLERS[sampler].any_eta else SAMPLERS[sampler].eta,
            guidance=GUIDANCE if config.get("num_class_embeds") else 1.0,
        ),
        precisions=("w8a8", "w4a8"),
        target=_target(target),
        output=f"build/{model.absolute().name}",
    )


def _target(name: str) -> TargetSection:
    known = get_args(TargetSection.model_fields["name"].annotation)
    if name not in known:
        raise UsageError("unknown target", found=name, expected=" or ".join(known), mend="correct --target")
    return TargetSection.model_validate({"name": name})


def _configurations(model: Path) -> tuple[dict[str, object], dict[str, object]]:
    """Those of the denoiser and the scheduler, from a pipeline folder or from a single model's."""
    if (model / "model_index.json").is_file():
        denoiser, scheduler = model / _denoiser(model / "model_index.json"), model / "scheduler"
    elif (model / "config.json").is_file():
        denoiser, scheduler = model, model
    else:
        raise UsageError(
            "this is no diffusers folder",
            found=f"{model} without model_index.json or config.json" if model.exists() else f"no folder {model}",
            expected="a folder that a diffusers pipeline or model wrote with save_pretrained",
            mend="correct --model; for other models write the plan by hand: `ptqd-export schema` describes it",
        )
    return read_json_object(denoiser / "config.json"), read_json_object(scheduler / "scheduler_config.json")


def _denoiser(index: Path) -> str:
    parts = read_json_object(index)
    for name in DENOISERS:
        if name in parts:
            return name
    raise UsageError(
        "the pipeline has no denoiser",
        found=", ".join(part for part in parts if not part.startswith("_")),
        expected=" or ".join(DENOISERS),
        mend="name a diffusion pipeline's folder with --model",
    )
