"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from engines.errors import UsageError
from engines.files import sha256
from ptqd_export.models import diffusers_dit, diffusers_unet
from ptqd_export.models.base import Declaration, Family, LoadedModel
from ptqd_export.models.conditions import conditioning_of
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.factory import declare_factory, load_factory
from ptqd_export.plan import FACTORY, PlanFile

DENOISERS: Mapping[str, Family] = {
    "UNet2DModel": diffusers_unet,
    "UNet2DConditionModel": diffusers_unet,
    "DiTTransformer2DModel": diffusers_dit,
}
"""Families of diffusers folders, by the class of the denoiser."""


def load_model(plan_file: PlanFile) -> LoadedModel:
    """The plan's model.

    Raises:
        UsageError: no such model, its kind is not supported, or the plan's conditions do not fit it.
        PtqdError: its weights cannot be read.
    """
    section, conditions = plan_file.plan.model, plan_file.conditions_path
    if section.factory is not None:
        return load_factory(section.factory, plan_file.folder, section.null_class, conditions)
    path = plan_file.model_path
    family = find_family(path)
    declared = family.declare(path)
    conditioning, null_class = conditioning_of(declared.inputs, section.null_class, conditions)
    networks = family.load(path, declared)
    return LoadedModel(
        family=declared.family,
        adapter=networks.adapter,
        sample_shape=declared.sample_shape,
        conditioning=conditioning,
        null_class=null_class,
        noise_schedule=declared.noise_schedule,
        decoder=networks.decoder,
        files=model_files(path),
    )


def declare_model(source: str, folder: Path) -> Declaration:
    """What a model is, from its configuration alone where it has one.

    Args:
        source: path, or `package.module:function`.
        folder: that the module may lie in.

    Raises:
        UsageError: no such model, or its kind is not supported.
    """
    if re.fullmatch(FACTORY, source):
        return declare_factory(source, folder)
    return find_family(Path(source)).declare(Path(source))


def find_family(path: Path) -> Family:
    """The family that reads what is at `path`."""
    folder = DiffusersFolder(existing(path))
    family = DENOISERS.get(folder.kind)
    if family is None:
        raise UsageError("This network is not supported.", found=f"{path}: {folder.kind}", expected=" or ".join(DENOISERS))
    return family


def existing(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(
            "The model folder is missing.",
            found=f"no folder {path}",
            expected="a folder that a diffusers pipeline or model wrote with `save_pretrained`",
            mend="correct model.path, which is relative to the plan, or --model",
        )
    return path


def model_files(path: Path) -> tuple[Path, ...]:
    """Every file of the model at `path`."""
    return tuple(sorted(file for file in path.rglob("*") if file.is_file()))


def fingerprint(model: LoadedModel, conditions: Path | None) -> str:
    """Hash of everything that `load_model` read."""
    files = model.files if conditions is None else (*model.files, conditions)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
