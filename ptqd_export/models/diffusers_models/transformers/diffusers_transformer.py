"""diffusers folders whose denoiser is a transformer of the table of families."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from engines.errors import UsageError
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.asked_size import state_sides
from ptqd_export.models.base import Declaration, ModelModules
from ptqd_export.models.conditions import GUIDANCE
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.diffusers_models.checked_declaration import checked
from ptqd_export.models.diffusers_models.diffusers_decoder import load_decoder, pixels_of
from ptqd_export.models.diffusers_models.diffusers_shapes import image_size
from ptqd_export.models.diffusers_models.transformers.family_table import TRANSFORMERS
from ptqd_export.models.diffusers_models.transformers.frame import Frame
from ptqd_export.models.diffusers_models.transformers.transformer_adapter import TransformerAdapter
from ptqd_export.models.diffusers_models.transformers.transformer_family import Config, Stated, TransformerFamily
from ptqd_export.models.known_keys import defaults


def declare(path: Path, size: tuple[int, int] | None = None) -> Declaration:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    family, config = TRANSFORMERS[folder.kind], _config(folder)
    frame = _frame(folder, config, family, size)
    inputs, texts = family.conditions(config), family.texts(config, folder.pipeline)
    usual = family.usual(Stated(config, folder.index or {}, folder.scheduler))
    few = folder.few_steps(family.distilled if all(one.name != GUIDANCE for one in inputs) else (family.distilled.steps, usual.guidance))
    declared = Declaration(
        family=f"diffusers {folder.kind}",
        sample_shape=frame.sample_shape,
        inputs=inputs,
        noise_schedule=_noise_schedule(folder, family, frame),
        sampler=folder.sampler.name,
        notes=(
            *folder.notes,
            *few.notes,
            *filter(None, [family.note, "" if few.notes else family.unmarked]),
            *(use.note for use in texts if use.note and use.folder in folder.parts),
        ),
        steps=few.steps or usual.steps,
        guidance=few.guidance or usual.guidance,
        takes_prompts=bool(texts),
        guidance_patch=family.side(config) if family.keeps_norm else None,
        texts=texts,
    )
    return checked(folder, declared, partial(TransformerAdapter, family=family, frame=frame), size)


def load(path: Path, declared: Declaration) -> ModelModules:
    """See `ptqd_export.models.base.Family`."""
    folder = DiffusersFolder(path)
    family, config = TRANSFORMERS[folder.kind], _config(folder)
    channels, *sides = declared.sample_shape
    frame = Frame(config, channels, tuple(sides), pixels_of(folder, family.pixels))
    adapter = TransformerAdapter(folder.load(folder.denoiser), tuple(one.name for one in declared.inputs), family, frame)
    return ModelModules(adapter, load_decoder(folder))


def _config(folder: DiffusersFolder) -> Config:
    return {**defaults(folder.kind), **folder.config(folder.denoiser)}


def _noise_schedule(folder: DiffusersFolder, family: TransformerFamily, frame: Frame) -> NoiseSchedule:
    tokens = frame.tokens(family.side(frame.config))
    schedule = NoiseSchedule.from_scheduler_config(folder.scheduler, tokens)
    if schedule.prediction_type != "flow":
        return schedule
    by_steps = {"mu": None, "mu_tokens": tokens} if family.mu_of_steps and schedule.mu is not None else {}
    return schedule.model_copy(update={"last_sigma": family.last_sigma, **by_steps})


def _frame(folder: DiffusersFolder, config: Config, family: TransformerFamily, size: tuple[int, int] | None) -> Frame:
    """Return the sizes of a sample.

    Raises:
        UsageError: the network takes an image beside the state, or its tokens do not cover the size.
    """
    inputs, stated_outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    outputs = stated_outputs if family.layout == "latents" else stated_outputs * config["patch_size"] ** 2
    if outputs not in (inputs, 2 * inputs):
        raise UsageError(
            "This transformer takes more than a state, which is not supported.",
            found=f"{folder.path / folder.denoiser}: in_channels = {inputs}, out_channels = {stated_outputs}",
            expected="as many channels out as in, or twice as many",
            mend="take the text-to-image model of this family",
        )
    pixels, side = pixels_of(folder, family.pixels), family.side(config)
    stated = config.get("sample_size") or family.size
    asked = tuple(one * pixels for one in image_size({"sample_size": stated})) if size is None else size
    sides = state_sides(asked, pixels, side, f"sample_size = {stated}" if size is None else None)
    return Frame(config, family.channels(config), sides, pixels)
