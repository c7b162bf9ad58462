"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from engines.errors import UsageError
from engines.host.files import files_below, sha256
from engines.networks.conditioning import Conditioning
from ptqd_export.models.base import Declaration, Family, LoadedModel
from ptqd_export.models.compvis import latent_diffusion
from ptqd_export.models.conditions import conditioning_of, fitted
from ptqd_export.models.diffusers_folder import INDEX, DiffusersFolder
from ptqd_export.models.diffusers_models import diffusers_dit, diffusers_unet
from ptqd_export.models.factory import declare_factory, load_factory
from ptqd_export.models.lora import Lora, load_lora
from ptqd_export.models.module_checks import check_finite, check_images
from ptqd_export.models.text.prompts import PromptEncoder, calibration_prompts, find_prompts
from ptqd_export.models.text.text_encoders import ENCODERS
from ptqd_export.plan import FACTORY, PlanFile

DENOISER = "unet"
"""Name of the denoiser in LoRA files."""

DENOISERS: Mapping[str, Family] = {
    "UNet2DModel": diffusers_unet,
    "UNet2DConditionModel": diffusers_unet,
    "DiTTransformer2DModel": diffusers_dit,
}
"""Families of diffusers folders, by the class name of the denoiser."""

CHECKPOINTS = (".ckpt", ".safetensors")
"""Suffixes of files that hold a whole CompVis model; its YAML lies beside the file."""

ALONE = "to export the denoiser alone, leave the first stage out of the folder and of model_index.json: the samples are then latents"

OWN_FILES = ("*config.json", "*.safetensors*", "*.bin*")
"""Patterns of the files that a denoiser needs if it lies in the model's folder itself, beside whatever the user keeps there."""


def load_model(plan_file: PlanFile) -> LoadedModel:
    """Load the plan's model.

    Raises:
        UsageError: there is no such model, its kind is not supported, or the plan's conditions do not fit it.
        PtqdError: the weights cannot be read.
    """
    section, conditions = plan_file.plan.model, plan_file.conditions_path
    if section.factory is not None:
        return load_factory(section.factory, plan_file.folder, section.null_class, conditions)
    path = plan_file.model_path
    family = find_family(path)
    declared = _declared(family, path)
    lora = _lora(plan_file)
    prompts = _prompts(plan_file, declared, lora)
    if prompts is None:
        conditioning, null_class = conditioning_of(declared.inputs, section.null_class, conditions)
    else:
        conditioning, null_class = _of_prompts(plan_file, declared, prompts), None
    networks = family.load(path, declared)
    if lora is not None:
        lora.fuse(DENOISER, networks.adapter.network)
    check_finite(networks.adapter.network, "the denoiser", plan_file.lora_path)
    if networks.decoder is not None:
        check_finite(networks.decoder, "the decoder")
        check_images(networks.decoder, declared.sample_shape, None if path.suffix in CHECKPOINTS else ALONE)
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


def _prompts(plan_file: PlanFile, declared: Declaration, lora: Lora | None) -> PromptEncoder | None:
    """Find the model's prompt encoder; None if the plan has no prompts."""
    if plan_file.prompts is None:
        return None
    prompts = find_prompts(plan_file.model_path, declared.inputs, lora)
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


def declare_model(source: str, folder: Path) -> Declaration:
    """Describe a model, from its configuration alone if it has one.

    Args:
        source: path, or `package.module:function`.
        folder: folder in which the module may lie.

    Raises:
        UsageError: there is no such model, or its kind is not supported.
    """
    if re.fullmatch(FACTORY, source):
        return declare_factory(source, folder)
    return _declared(find_family(Path(source)), Path(source))


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
            expected="a folder written by `save_pretrained` of a diffusers pipeline or model, "
            f"or a {' or '.join(CHECKPOINTS)} file beside its YAML",
            mend="correct model.path, which is relative to the plan, or --model",
        )
    return path


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files of the model at `path`, through links too, without anything else that lies in its folder.

    Files of parts that are not read count too: a build that runs once more is better than one that misses a change.
    """
    if path.suffix in CHECKPOINTS:
        return path, latent_diffusion.find_config(path)
    alone = (path / "config.json").is_file()
    own = (file for pattern in (INDEX, *(OWN_FILES if alone else ())) for file in path.glob(pattern) if file.is_file())
    parts = (folder for folder in sorted(path.iterdir()) if _is_part(folder))
    return (*sorted(own), *(file for part in parts for file in files_below(part)))


def _is_part(folder: Path) -> bool:
    """Return whether a subfolder of a pipeline is one of its parts, rather than a bundle or samples that somebody put there."""
    visible = folder.is_dir() and not folder.name.startswith(".")
    return visible and (folder.name in ENCODERS.values() or any(folder.glob("*config.json")))


def fingerprint(model: LoadedModel, conditions: Path | None) -> str:
    """Return a hash of every file that `load_model` read."""
    files = model.files if conditions is None else (*model.files, conditions)
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
