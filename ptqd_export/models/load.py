"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError
from engines.host.files import sha256
from engines.networks.conditioning import Conditioning
from ptqd_export.models.base import Declaration, Family, LoadedModel
from ptqd_export.models.compvis import latent_diffusion
from ptqd_export.models.conditions import conditioning_of, fitted
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models import diffusers_dit, diffusers_unet
from ptqd_export.models.factory import declare_factory, load_factory
from ptqd_export.models.lora import DENOISER, Lora, load_lora
from ptqd_export.models.places.model_place import find_place
from ptqd_export.models.places.other_files import CHECKPOINTS
from ptqd_export.models.text.prompts import PromptEncoder, calibration_prompts, find_prompts
from ptqd_export.models.text.text_encoders import find_text_folders
from ptqd_export.plan import FACTORY, PlanFile

if TYPE_CHECKING:
    from torch import nn

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
    lora = _lora(plan_file, path, family, declared)
    prompts = None if plan_file.prompts is None else find_prompts(path, declared.inputs, lora)
    if prompts is None:
        conditioning, null_class = conditioning_of(declared.inputs, section.null_class, conditions)
    else:
        conditioning, null_class = _of_prompts(plan_file, declared, prompts), None
    networks = family.load(path, declared)
    if lora is not None:
        lora.fuse(DENOISER, networks.adapter.network)
    texts = plan_file.prompts if isinstance(plan_file.prompts, Path) else None
    return LoadedModel(
        family=declared.family,
        adapter=networks.adapter,
        sample_shape=declared.sample_shape,
        conditioning=conditioning,
        null_class=null_class,
        noise_schedule=declared.noise_schedule,
        decoder=networks.decoder,
        prompts=prompts,
        files=(*model_files(path), *(() if lora is None else lora.files), *(() if texts is None else (texts,))),
    )


def _lora(plan_file: PlanFile, path: Path, family: Family, declared: Declaration) -> Lora | None:
    """Read the plan's LoRA; None if it has none. Without prompts, text encoders are not changed."""
    section = plan_file.plan.model.lora
    if section is None:
        return None
    texts = () if plan_file.prompts is None else find_text_folders(path)

    def networks() -> Iterator[tuple[str, nn.Module]]:
        yield DENOISER, family.load(path, declared).adapter.network
        yield from ((one.name, one.load("last").network) for one in texts)

    lora = load_lora(plan_file.folder / section.path, section.scale).placed(networks())
    if plan_file.prompts is not None:
        lora.check_parts((DENOISER, *(one.name for one in texts)))
    elif DENOISER not in lora.layers:
        raise UsageError(
            "The LoRA changes nothing here.",
            found=f"{lora.path}: layers of {', '.join(sorted(lora.layers))}, and no model.prompts",
            expected="prompts, or a LoRA that changes the denoiser",
            mend="omit model.lora, or give model.prompts",
        )
    return lora


def _of_prompts(plan_file: PlanFile, declared: Declaration, prompts: PromptEncoder) -> Conditioning:
    """Encode the plan's prompts."""
    assert plan_file.prompts is not None
    if plan_file.plan.model.null_class is not None:
        raise UsageError("The model has no classes.", found="model.null_class", mend="give model.negative_prompt instead")
    texts = calibration_prompts(plan_file.prompts)
    conditioning = prompts.load().condition(texts, plan_file.plan.model.negative_prompt)
    return fitted(declared.inputs, conditioning, "model.prompts")


def declare_model(source: str, folder: Path) -> Declaration:
    """Describe a model, from its configuration alone if it has one.

    Args:
        source: what `find_place` takes, or `package.module:function` of a factory.
        folder: folder to which a path is relative, and in which the module may lie.

    Raises:
        UsageError: there is no such model, or its kind is not supported.
    """
    if re.fullmatch(FACTORY, source):
        return declare_factory(source, folder.absolute())
    path = find_place(source, folder).path
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
