"""Write a starter plan for a model, from its configuration files alone if it has any."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from engines.bundle.image_size import ImageSize, size_name
from engines.chain.denoiser import is_guided
from engines.errors import UnknownNameError, UsageError
from engines.host.files import write_text
from engines.samplers import SAMPLERS
from ptqd_export.commands.guessed_target import guess_target
from ptqd_export.commands.proposed_precisions import propose_precisions
from ptqd_export.commands.quick_plan import quick, quick_note
from ptqd_export.plan import FACTORY, LoraSection, ModelSection, Plan, QuantizationSection, ReuseSection, SamplerSection, TargetSection
from ptqd_export.plan.targets import TARGETS

if TYPE_CHECKING:
    from engines.networks.lora.lora_use import LoraUse
    from ptqd_export.models.base import Declaration

STEPS = 20
FEW_STEPS = 8
"""Steps of a chain whose neighbouring steps differ too much to share features."""
GUIDANCE = 1.5
TEXT_GUIDANCE = 7.5
GRAPH_SHARE = 0.1
"""Share of the multiplications in float for a graph of unknown origin. Some networks that nobody trained with few bits in mind need it."""

PROMPTS = (
    "a photograph of an astronaut riding a horse",
    "a bowl of fruit on a wooden table, oil painting",
    "portrait of an old fisherman, black and white photograph",
    "a red bicycle leaning against a brick wall",
    "an aerial view of a city at night",
    "a fox in the snow, watercolour",
    "the inside of a cathedral, sunlight through stained glass",
    "a diagram of a steam engine, blueprint",
)
"""Prompts to calibrate with until the user writes others."""


def write_starter_plan(
    model: Path,
    target: str | None,
    path: Path,
    *,
    force: bool,
    first_look: bool = False,
    compute_capability: str | None = None,
    sizes: Sequence[ImageSize] = (),
    lora: LoraUse | None = None,
) -> tuple[str, ...]:
    """Write a starter plan to `path`, or a quick one for a first look. Return what the user should know about it.

    Raises:
        UsageError: the kind of model or the target is unknown, or the file exists and `force` is not set.
    """
    if path.exists() and not force:
        raise UsageError(
            "The output file already exists.",
            found=path,
            expected="a new file",
            mend="choose another with -o, or overwrite it with --force",
        )
    plan = starter_plan(model, target, path.parent, compute_capability, sizes, lora)
    write_text(path, (quick(plan) if first_look else plan).resolved_json())
    return (*plan.comments, *([quick_note(plan)] if first_look else []))


def starter_plan(
    model: str | PathLike[str],
    target: str | None = None,
    folder: str | PathLike[str] = ".",
    compute_capability: str | None = None,
    sizes: Sequence[ImageSize] = (),
    lora: LoraUse | None = None,
) -> Plan:
    """Return a starter plan, with paths relative to the folder where the plan will lie.

    Args:
        model: folder or file of a model, an ONNX graph, its id on the Hugging Face hub, or `package.module:function` of a factory.
        target: runtime of the engines; None takes the one that fits this machine, see `guess_target`.
        folder: folder of the plan.
        compute_capability: for TensorRT, that of the GPU that will run the engines; see `propose_precisions`.
        sizes: height and width of the images in pixels, one or several; empty takes the model's own.
        lora: a LoRA to fuse into the model. One for few steps decides how the model is sampled.

    Raises:
        UsageError: the kind of model or the target is unknown, the compute capability does not fit the target, a size is named twice,
            the model cannot have one of the sizes, or the LoRA is missing.
        PtqdError: the LoRA cannot be read.
    """
    known, source, folder = _target(target or guess_target().name), str(model), Path(folder)
    precisions, reason = propose_precisions(known.name, compute_capability)
    own = re.fullmatch(FACTORY, source) is not None or source.endswith(".onnx")
    if own and sizes:
        raise UsageError(
            "This model fixes its size.",
            found=f"--size {size_name(sizes[0])} for {source}",
            expected="the folder of a model",
            mend="leave --size out; the function or the graph says the shape of the state",
        )
    if own and lora is not None:
        raise UsageError(
            "This model takes no LoRA.",
            found=f"--lora {lora} for {source}",
            expected="the folder of a model",
            mend="leave --lora out, and change the weights yourself",
        )
    if len(set(sizes)) < len(sizes):
        twice = next(size for number, size in enumerate(sizes) if size in sizes[:number])
        raise UsageError(
            "A size is named twice.", found=f"--size {size_name(twice)} twice", expected="different sizes", mend="leave out one of them"
        )
    if own:
        section, declared, name = (_of_graph(Path(source), folder)) if source.endswith(".onnx") else _of_factory(source, folder)
    else:
        section, declared, name = _of_path(source, folder, sizes)
    settings: Mapping[str, Any] = {}
    if lora is not None:
        from ptqd_export.commands.few_step_lora import with_few_steps  # imports torch, see below

        walk = with_few_steps(lora.path, declared)
        declared, settings = walk.declared, walk.settings
        section = section.model_copy(
            update={"lora": LoraSection(path=Path(os.path.relpath(lora.path, folder)).as_posix(), scale=lora.scale)}
        )
    sampler = _sampler(section, declared, settings)
    return Plan(
        comments=(*declared.notes, *_notes(section, declared), *([] if reason is None else [reason])),
        model=section,
        sampler=sampler,
        precisions=precisions,
        reuse=_reuse(section, sampler, known),
        quantization=QuantizationSection() if section.onnx is None else QuantizationSection(float_share=GRAPH_SHARE),
        target=known,
        output=f"build/{name}",
    )


def _of_factory(source: str, folder: Path) -> tuple[ModelSection, Declaration, str]:
    """Return a factory's section of the plan, its declaration and its name."""
    from ptqd_export.models.load import declare_model  # imports torch, for which a wrong command line need not wait

    return ModelSection(factory=source), declare_model(source, folder), source.rpartition(":")[2]


def _of_graph(path: Path, folder: Path) -> tuple[ModelSection, Declaration, str]:
    """Return a graph's section of the plan, its declaration and its name."""
    from ptqd_export.commands.graph_starter import graph_section  # imports torch, see above
    from ptqd_export.models.onnx_graph.onnx_model import declare_onnx

    graph, notes = graph_section(path, folder)
    section = ModelSection(onnx=Path(os.path.relpath(path, folder)).as_posix(), graph=graph)
    return section, replace(declare_onnx(path, graph, folder), notes=notes), path.stem


def _of_path(source: str, folder: Path, sizes: Sequence[ImageSize]) -> tuple[ModelSection, Declaration, str]:
    """Return a model's section of the plan, its declaration and its name."""
    from ptqd_export.models.conditions import IMAGE  # imports torch, see above
    from ptqd_export.models.load import declare_model
    from ptqd_export.models.places.model_place import find_place
    from ptqd_export.models.text.text_encoders import find_text_folders

    place = find_place(source, Path())
    declared, *_ = [declare_model(str(place.path.absolute()), folder, size) for size in sizes or (None,)]
    takes = declared.takes_prompts and (declared.repaints or all(one.name != IMAGE for one in declared.inputs))
    prompted = takes and bool(find_text_folders(place.path))
    section = ModelSection(
        path=place.written(folder),
        prompts=PROMPTS if prompted else None,
        size=sizes[0] if len(sizes) == 1 else None,
        sizes=tuple(sizes) if len(sizes) > 1 else (),
    )
    return section, declared, place.name


def _sampler(section: ModelSection, declared: Declaration, settings: Mapping[str, Any]) -> SamplerSection:
    """Return the model's own sampler with these settings; ancestral DDIM, because a correction gives up fresh noise for that of
    quantization.
    """
    name = declared.sampler
    usual = {
        "name": name,
        "steps": min(declared.steps or STEPS, declared.noise_schedule.num_train_timesteps),
        "eta": 1.0 if name == "ddim" else SAMPLERS[name].eta,
        "guidance": _guidance(section, declared),
    }
    return SamplerSection.model_validate({**usual, **settings})


def _reuse(section: ModelSection, sampler: SamplerSection, target: TargetSection) -> ReuseSection:
    """Return a cut where steps may reuse features: for U-Nets and transformers of known families whose chains are long enough, on a target
    that the build can time.
    """
    cuts = section.path is not None and sampler.steps > FEW_STEPS and not TARGETS[target.name].stand_in
    return ReuseSection(cuts="auto" if cuts else ())


def _guidance(section: ModelSection, declared: Declaration) -> float:
    if declared.guidance is not None:
        return declared.guidance
    if section.prompts is not None:
        return TEXT_GUIDANCE
    return 1.0 if declared.null_class is None else GUIDANCE


def _needs_null(section: ModelSection, declared: Declaration) -> bool:
    """Return whether the plan's guidance needs values that mean "none"."""
    return is_guided(_guidance(section, declared)) and not declared.embeds_guidance


def _notes(section: ModelSection, declared: Declaration) -> Iterator[str]:
    """Yield what the model's configuration leaves open."""
    labels = next((one.labels for one in declared.inputs if one.labels is not None), None)
    if len(declared.inputs) == 1 and labels is not None and declared.null_class is None:
        yield (
            f'guidance is 1: the model does not say which of its {labels} labels means "no class"; '
            "if one does, name it as model.null_class and set sampler.guidance"
        )
    if declared.repaints and section.prompts is not None:
        yield "name pictures and masks as model.inpaint: without them the calibration repaints everything"
    if declared.inputs and labels is None and section.prompts is None:
        null = f", and null.{declared.asked[0].name} and so on for guidance" if _needs_null(section, declared) else ""
        yield f"name a file as model.conditions before you build: an .npz with {', '.join(map(str, declared.asked))}{null}"


def _target(name: str) -> TargetSection:
    known = get_args(TargetSection.model_fields["name"].annotation)
    if name not in known:
        raise UnknownNameError("The target is unknown.", found=name, known=known, mend="correct --target")
    return TargetSection.model_validate({"name": name})
