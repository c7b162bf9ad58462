"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.bundle.manifest import InputRecord
from engines.errors import UsageError
from engines.host.files import files_below, sha256
from engines.networks.conditioning import Conditioning
from engines.networks.control import Control
from ptqd_export.models.base import ControlPart, Declaration, EncoderModule, Family, LoadedModel, ModelModules, PreviewPart
from ptqd_export.models.compvis import latent_diffusion
from ptqd_export.models.conditions import TIME_IDS, conditioning_of, fitted, with_fixed, with_guidance
from ptqd_export.models.control.control_network import load_control, residuals_of
from ptqd_export.models.control.painted_images import of_prompts, painted_images
from ptqd_export.models.control.residual_inputs import with_residuals
from ptqd_export.models.diffusers_folder import INDEX, DiffusersFolder
from ptqd_export.models.diffusers_models import diffusers_dit, diffusers_unet
from ptqd_export.models.diffusers_models.diffusers_encoder import load_encoder
from ptqd_export.models.diffusers_models.preview_decoder import check_decoded, load_preview
from ptqd_export.models.diffusers_models.transformers import diffusers_transformer
from ptqd_export.models.diffusers_models.transformers.family_table import TRANSFORMERS
from ptqd_export.models.factory import declare_factory, load_factory
from ptqd_export.models.lora import DENOISER, Lora, load_lora
from ptqd_export.models.module_checks import check_finite, check_images, check_states
from ptqd_export.models.onnx_graph.onnx_model import load_onnx
from ptqd_export.models.pipeline_rules import EDITING_PIPELINES
from ptqd_export.models.places.model_place import find_part, find_place
from ptqd_export.models.places.other_files import CHECKPOINTS
from ptqd_export.models.tensors.mapped_weights import share_values
from ptqd_export.models.text.prompts import PromptEncoder, calibration_prompts, find_prompts
from ptqd_export.models.text.text_encoders import ENCODERS, find_text_folders
from ptqd_export.plan import FACTORY, ControlSection, ModelSection, PlanFile

if TYPE_CHECKING:
    from torch import nn

DENOISERS: Mapping[str, Family] = {
    "UNet2DModel": diffusers_unet,
    "UNet2DConditionModel": diffusers_unet,
    "DiTTransformer2DModel": diffusers_dit,
    **dict.fromkeys(TRANSFORMERS, diffusers_transformer),
}
"""Families of diffusers folders, by the class name of the denoiser."""

MISSING: Mapping[str, str] = {
    "Lumina2Transformer2DModel": "guidance that keeps the norm of every row of the latents, as its pipeline has it, "
    "and a network for a whole batch: its own loops over the samples, and turns queries and keys as complex numbers",
    "HunyuanDiT2DModel": "prompts that a BERT encoder reads too, with a tokenizer and a mask of their own",
}
"""What is missing for a network that users ask for."""

HAS_FRAMES, FRAMES = r"3D(?!i)|Video|Temporal", "states with an axis of frames, and a decoder of videos"
"""Pattern of the class names of networks for videos, and what is missing for them."""

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
    if section.onnx is not None and section.graph is not None:
        return load_onnx(plan_file.folder / section.onnx, section.graph, plan_file.folder, section.null_class, conditions)
    return _load_path(plan_file)


def _load_path(plan_file: PlanFile) -> LoadedModel:
    """Load a model from its folder or checkpoint. Raises what `load_model` raises."""
    section = plan_file.plan.model
    path = find_place(str(section.path), plan_file.folder).path
    family = find_family(path)
    declared = _declared_at_all(plan_file, family, path)
    if section.control is not None:
        declared = with_residuals(path, declared, section.control.kind)
    _check_inpaint(section, path, declared)
    _check_prompts(plan_file, path, declared)
    preview = None if section.preview is None else _preview(section.preview, plan_file.folder, declared)
    lora = _lora(plan_file, path, family, declared)
    guidance = plan_file.plan.sampler.guidance if declared.embeds_guidance else None
    prompts = None
    if plan_file.prompts is not None:
        prompts = find_prompts(path, of_prompts(declared), declared.texts, lora, guidance, _first_size(plan_file))
    conditioning, null_class = _conditions(plan_file, declared, prompts, guidance)
    networks = family.load(path, declared)
    if lora is not None:
        lora.fuse(DENOISER, networks.adapter.network)
    check_finite(networks.adapter.network, "the denoiser", None if lora is None else lora.path)
    if preview is not None:
        check_decoded(networks.decoder, declared)
    if networks.decoder is not None:
        check_finite(networks.decoder, "the decoder")
        check_images(networks.decoder, declared.sample_shape, None if path.suffix in CHECKPOINTS else ALONE)
    encoder = _encoder(path, declared, networks) if section.encoder or (declared.repaints and networks.decoder is not None) else None
    pictures: tuple[Path, ...] = ()
    if declared.repaints and prompts is not None and conditioning is not None:
        images, pictures = painted_images(section.inpaint, plan_file.folder, declared, networks, encoder)
        conditioning = conditioning.with_image(images[np.arange(conditioning.rows) % len(images)])
    control = None if section.control is None else _control(section.control, plan_file.folder, declared, conditioning)
    texts = plan_file.prompts if isinstance(plan_file.prompts, Path) else None
    return LoadedModel(
        family=declared.family,
        adapter=networks.adapter,
        sample_shape=declared.sample_shape,
        conditioning=conditioning,
        null_class=null_class,
        noise_schedule=declared.noise_schedule,
        decoder=networks.decoder,
        encoder=encoder,
        preview=preview,
        prompts=prompts,
        embeds_guidance=declared.embeds_guidance,
        guidance_patch=declared.guidance_patch,
        files=(
            *model_files(path),
            *(() if lora is None else lora.files),
            *(() if texts is None else (texts,)),
            *pictures,
            *(() if control is None else control.files),
        ),
        control=_residuals(declared, control),
        control_part=control,
    )


def _conditions(
    plan_file: PlanFile, declared: Declaration, prompts: PromptEncoder | None, guidance: float | None
) -> tuple[Conditioning | None, int | None]:
    """Return the conditioning table of the plan's prompts, conditions or classes, and the class that means "none"."""
    if prompts is not None:
        return _of_prompts(plan_file, declared, prompts), None
    conditioning, null_class = conditioning_of(declared.asked, plan_file.plan.model.null_class, plan_file.conditions_path)
    if guidance is not None and conditioning is not None:
        conditioning = with_guidance(declared.inputs, conditioning, guidance)
    return conditioning, null_class


def _check_inpaint(section: ModelSection, path: Path, declared: Declaration) -> None:
    if section.inpaint is not None and not declared.repaints:
        raise UsageError(
            "The network takes no mask.",
            found=f"model.inpaint for {path}: {declared.family}",
            expected="a U-Net with further channels for a mask and a masked picture",
            mend="leave model.inpaint out of the plan: other networks repaint with `ptqd-run sample --mask` without calibration",
        )


def _control(section: ControlSection, folder: Path, declared: Declaration, conditioning: Conditioning | None) -> ControlPart | None:
    """Load the plan's control network; None if it names none."""
    tables = {} if conditioning is None else conditioning.tables
    return load_control(section, folder, declared, {name: table.shape[1:] for name, table in tables.items()})


def _residuals(declared: Declaration, part: ControlPart | None) -> Control | None:
    """Return the residuals of the network while it is calibrated; None if it takes none."""
    if not declared.control:
        return None
    records = tuple(InputRecord(name=one.name, dtype=one.dtype, shape=tuple(map(int, one.shape))) for one in declared.control)
    return Control(records) if part is None else residuals_of(part, records)


def _encoder(path: Path, declared: Declaration, networks: ModelModules) -> EncoderModule:
    """Load the encoder of the model's first stage."""
    if path.suffix in CHECKPOINTS:
        raise UsageError(
            "The encoder of a checkpoint is not supported.",
            found=f"model.encoder for {path}",
            expected="a diffusers pipeline folder",
            mend="convert the checkpoint to a pipeline folder with diffusers, or leave model.encoder out of the plan",
        )
    encoder = load_encoder(DiffusersFolder(path))
    assert networks.decoder is not None, "a first stage has both halves"
    check_finite(encoder, "the encoder")
    check_states(encoder, networks.decoder, declared.sample_shape)
    return encoder


def _preview(written: str, folder: Path, declared: Declaration) -> PreviewPart:
    path = find_part(written, folder, "model.preview")
    with _reading(path):
        return load_preview(path, declared)


def _lora(plan_file: PlanFile, path: Path, family: Family, declared: Declaration) -> Lora | None:
    """Read the plan's LoRA; None if it has none. Without prompts, text encoders are not changed."""
    section = plan_file.plan.model.lora
    if section is None:
        return None
    texts = () if plan_file.prompts is None else find_text_folders(path)

    def networks() -> Iterator[tuple[str, nn.Module]]:
        yield DENOISER, family.load(path, declared).adapter.network
        yield from ((one.name, one.load_network()) for one in texts)

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


def _check_prompts(plan_file: PlanFile, path: Path, declared: Declaration) -> None:
    """Refuse prompts for a family whose text encoders are not supported."""
    if plan_file.prompts is not None and not declared.takes_prompts:
        raise UsageError(
            "The text encoders of this family are not supported.",
            found=f"model.prompts for {path}: {declared.family}",
            expected=f"model.conditions, an .npz with {', '.join(map(str, declared.asked))}",
            mend="encode the prompts with the model's own pipeline, one row for each, and name the file as model.conditions",
        )


def _of_prompts(plan_file: PlanFile, declared: Declaration, prompts: PromptEncoder) -> Conditioning:
    """Encode the plan's prompts."""
    assert plan_file.prompts is not None
    if plan_file.plan.model.null_class is not None:
        raise UsageError("The model has no classes.", found="model.null_class", mend="give model.negative_prompt instead")
    texts = calibration_prompts(plan_file.prompts)
    conditioning = prompts.load().condition(texts, plan_file.plan.model.negative_prompt)
    return fitted(of_prompts(declared), conditioning, "model.prompts")


def load_at_size(plan_file: PlanFile, first: LoadedModel, size: tuple[int, int]) -> LoadedModel:
    """Return a model that was loaded at its first size at a further one. Both share the values of their weights.

    Raises:
        UsageError: see `load_model`.
    """
    path = find_place(str(plan_file.plan.model.path), plan_file.folder).path
    family = find_family(path)
    declared = _declared(family, path, size)
    adapter, lora = family.load(path, declared).adapter, _lora(plan_file, path, family, declared)
    if lora is not None:
        lora.fuse(DENOISER, adapter.network)
    share_values(adapter.network, first.adapter.network)
    prompts, conditioning = first.prompts, first.conditioning
    if prompts is not None and conditioning is not None:
        found = find_prompts(path, declared.inputs, declared.texts, None, None, size)
        prompts = replace(prompts, fixed={**prompts.fixed, **found.fixed}, null_fixed=found.null_fixed)
        conditioning = with_fixed(conditioning, found.fixed, found.null_fixed)
    return replace(
        first,
        adapter=adapter,
        sample_shape=declared.sample_shape,
        noise_schedule=declared.noise_schedule,
        prompts=prompts,
        conditioning=conditioning,
    )


def _first_size(plan_file: PlanFile) -> tuple[int, int] | None:
    return next(iter(plan_file.plan.model.all_sizes), None)


def _declared_at_all(plan_file: PlanFile, family: Family, path: Path) -> Declaration:
    """Describe a model at its first size, after checking that it can have every size of the plan.

    Raises:
        UsageError: it cannot have one of the sizes, or its conditions depend on the size.
    """
    declared = _declared(family, path, _first_size(plan_file))
    for size in plan_file.plan.model.all_sizes[1:]:
        _check_same_inputs(declared, _declared(family, path, size))
    of_the_size = [one.name for one in declared.inputs if one.name == TIME_IDS]
    if plan_file.plan.model.sizes[1:] and of_the_size and plan_file.prompts is None:
        raise UsageError(
            "Prepared conditions of this network belong to one size.",
            found=f"{len(plan_file.plan.model.sizes)} model.sizes, and {of_the_size[0]} in model.conditions",
            expected="model.prompts, whose sizes follow those of the images; or one size",
            mend="give model.prompts, or build one bundle for each size",
        )
    return declared


def _check_same_inputs(declared: Declaration, other: Declaration) -> None:
    if other.inputs != declared.inputs:
        raise UsageError(
            "This network takes an image beside the state, so its conditions belong to one size.",
            found=f"{', '.join(map(str, declared.inputs))} at the first of model.sizes",
            expected="one size",
            mend="build one bundle for each size",
        )


def declare_model(source: str, folder: Path, size: tuple[int, int] | None = None) -> Declaration:
    """Describe a model, from its configuration alone if it has one.

    Args:
        source: what `find_place` takes, or `package.module:function` of a factory.
        folder: folder to which a path is relative, and in which the module may lie.
        size: height and width of the images in pixels, for a model at a path; None takes the model's own.

    Raises:
        UsageError: there is no such model, or its kind is not supported.
    """
    if re.fullmatch(FACTORY, source):
        return declare_factory(source, folder.absolute())
    path = find_place(source, folder).path
    return _declared(find_family(path), path, size)


def _declared(family: Family, path: Path, size: tuple[int, int] | None = None) -> Declaration:
    """Describe a model from its configuration."""
    with _reading(path):
        return family.declare(path, size)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse a configuration that cannot be used. The format is not ours: any value in it may be of any type."""
    try:
        yield
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
    if folder.pipeline in EDITING_PIPELINES:
        raise UsageError(
            "This pipeline is not supported.",
            found=f"{path}: {folder.pipeline}, whose network reads the tokens of a picture beside the state",
            expected="a pipeline that draws from prompts alone",
            mend="wrap the network in a model.factory, with the tokens among its conditions",
        )
    family = DENOISERS.get(folder.kind)
    if family is None:
        missing = FRAMES if re.search(HAS_FRAMES, folder.kind) else MISSING.get(folder.kind)
        found = f"{path}: {folder.kind}" + ("" if missing is None else f", which needs {missing}")
        mend = "wrap the network in a model.factory" + ("" if missing is None else ", and sample it without what is missing")
        raise UsageError("This network is not supported.", found=found, expected=f"one of {', '.join(DENOISERS)}", mend=mend)
    return family


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
    return digest_of(model.files if conditions is None else (*model.files, conditions))


def digest_of(files: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files."""
    return hashlib.sha256("".join(f"{path.name} {sha256(path)}\n" for path in files).encode()).hexdigest()
