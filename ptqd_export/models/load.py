"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from engines.errors import UsageError
from engines.host.files import sha256
from engines.networks.conditioning import Conditioning
from ptqd_export.models.base import Declaration, Family, LoadedModel
from ptqd_export.models.compvis import latent_diffusion
from ptqd_export.models.conditions import conditioning_of, fitted
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models import diffusers_dit, diffusers_unet
from ptqd_export.models.factory import load_factory
from ptqd_export.models.lora import Lora, load_lora
from ptqd_export.models.places.model_place import find_place
from ptqd_export.models.places.other_files import CHECKPOINTS
from ptqd_export.models.text.prompts import PromptEncoder, calibration_prompts, find_prompts
from ptqd_export.plan import PlanFile

DENOISER = "unet"
"""Name of the denoiser in LoRA files."""

DENOISERS: Mapping[str, Family] = {
    "UNet2DModel": diffusers_unet,
    "UNet2DConditionModel": diffusers_unet,
    "DiTTransformer2DModel": diffusers_dit,
}
"""Families of diffusers folders, by the class name of the denoiser."""


def load_model(plan_file: PlanFile) -> LoadedModel:
    """Load the plan's model.

    Raises:
        UsageError: there is no such model, its kind is not supported, or the plan's conditions do not fit it.
        PtqdError: the weights cannot be read.
    """
    section, conditions = plan_file.plan.model, plan_file.conditions_path
    if section.factory is not None:
        return load_factory(section.factory, plan_file.folder, section.null_class, conditions)
    path = find_place(str(section.path), plan_file.folder).path
    family = find_family(path)
    declared = _declared(family, path)
    lora = _lora(plan_file)
    prompts = _prompts(plan_file, path, declared, lora)
    if prompts is None:
        conditioning, null_class = conditioning_of(declared.inputs, section.null_class, conditions)
    else:
        conditioning, null_class = _of_prompts(plan_file, declared, prompts), None
    networks = family.load(path, declared)
    if lora is not None:
        lora.fuse(DENOISER, networks.adapter.network)
    return LoadedModel(
        family=declared.family,
        adapter=networks.adapter,
        sample_shape=declared.sample_shape,
        conditioning=conditioning,
        null_class=null_class,
        noise_schedule=declared.noise_schedule,
        decoder=networks.decoder,
        prompts=prompts,
        files=(*model_files(path), *(file for file in (plan_file.lora_path, plan_file.prompts) if isinstance(file, Path))),
    )


def _lora(plan_file: PlanFile) -> Lora | None:
    section = plan_file.plan.model.lora
    return None if section is None else load_lora(plan_file.folder / section.path, section.scale)


def _prompts(plan_file: PlanFile, path: Path, declared: Declaration, lora: Lora | None) -> PromptEncoder | None:
    """Find the model's prompt encoder; None if the plan has no prompts."""
    if plan_file.prompts is None:
        return None
    prompts = find_prompts(path, declared.inputs, lora)
    if lora is not None:
        lora.check_parts((DENOISER, *(one.name for one in prompts.folders)))
    return prompts


def _of_prompts(plan_file: PlanFile, declared: Declaration, prompts: PromptEncoder) -> Conditioning:
    """Encode the plan's prompts."""
    assert plan_file.prompts is not None
    if plan_file.plan.model.null_class is not None:
        raise UsageError("The model has no classes.", found="model.null_class", mend="give model.negative_prompt instead")
    texts = calibration_prompts(plan_file.prompts)
    conditioning = prompts.load().condition(texts, plan_file.plan.model.negative_prompt)
    return fitted(declared.inputs, conditioning, "model.prompts")


def declare_model(path: Path) -> Declaration:
    """Describe a model from its configuration alone.

    Args:
        path: its folder or file, as `find_place` finds it.

    Raises:
        UsageError: its kind is not supported.
    """
    return _declared(find_family(path), path)


def _declared(family: Family, path: Path) -> Declaration:
    """Describe a model from its configuration. The format is not ours: any value in it may be of any type."""
    try:
        return family.declare(path)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            "The model's configuration contains an invalid value.",
            found=f"{path}: {type(error).__name__}: {error}",
            expected="the configuration that the model was saved with",
            mend="copy the model again",
        ) from error


def find_family(path: Path) -> Family:
    """Return the family that reads the model at `path`."""
    if path.suffix in CHECKPOINTS:
        return latent_diffusion
    folder = DiffusersFolder(path)
    family = DENOISERS.get(folder.kind)
    if family is None:
        raise UsageError("This network is not supported.", found=f"{path}: {folder.kind}", expected=" or ".join(DENOISERS))
    return family


def model_files(path: Path) -> tuple[Path, ...]:
    """Return every file of the model at `path`, except hidden ones: what hubs and version control keep there is not the model."""
    if path.suffix in CHECKPOINTS:
        return path, latent_diffusion.find_config(path)
    return tuple(sorted(_files(path, ())))


def _files(folder: Path, outer: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders. Links are followed, but for those to a folder around them."""
    here = folder.resolve()
    if here in outer:
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            yield from _files(path, (*outer, here))
        elif path.is_file() and not path.name.startswith("."):
            yield path


def fingerprint(model: LoadedModel, conditions: Path | None) -> str:
    """Return a hash of every file that `load_model` read."""
    files = model.files if conditions is None else (*model.files, conditions)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
