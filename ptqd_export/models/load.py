"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from engines.errors import UsageError
from engines.files import sha256
from ptqd_export.models import diffusers_dit, diffusers_unet
from ptqd_export.models.base import Declaration, Family, LoadedModel
from ptqd_export.models.conditions import conditioning_of
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.plan import PlanFile

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
    path = plan_file.model_path
    family = find_family(path)
    declared = family.declare(path)
    conditioning, null_class = conditioning_of(declared.inputs, plan_file.plan.model.null_class, plan_file.conditions_path)
    networks = family.load(path, declared)
    return LoadedModel(
        family=declared.family,
        adapter=networks.adapter,
        sample_shape=declared.sample_shape,
        conditioning=conditioning,
        null_class=null_class,
        noise_schedule=declared.noise_schedule,
        decoder=networks.decoder,
    )


def declare_model(path: Path) -> Declaration:
    """What the model at a path is, without its weights.

    Raises:
        UsageError: no such model, or its kind is not supported.
    """
    return find_family(path).declare(path)


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
            expected="a diffusers pipeline folder",
            mend="correct model.path; it is relative to the plan",
        )
    return path


def fingerprint(plan_file: PlanFile) -> str:
    """Hash of everything that `load_model` reads."""
    files = sorted(path for path in existing(plan_file.model_path).rglob("*") if path.is_file())
    if plan_file.conditions_path is not None and plan_file.conditions_path.is_file():
        files.append(plan_file.conditions_path)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
