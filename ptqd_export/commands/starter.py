"""A starter plan for a model, from its configuration files alone where it has some."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

from engines.errors import UsageError
from engines.host.files import write_text
from engines.samplers import SAMPLERS
from ptqd_export.plan import FACTORY, ModelSection, Plan, SamplerSection, TargetSection

STEPS = 20
GUIDANCE = 1.5
TEXT_GUIDANCE = 7.5
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
"""Something to calibrate with until the user's own are written down."""


def write_starter_plan(model: Path, target: str, path: Path, *, force: bool) -> None:
    """Write a starter plan to `path`.

    Raises:
        UsageError: the model is of no known kind, the target is unknown, or a file is in the way and `force` is not set.
    """
    if path.exists() and not force:
        raise UsageError(
            "a file is in the way", found=path, expected="a new file", mend="name another with -o, or overwrite it with --force"
        )
    write_text(path, starter_plan(model, target, path.parent).resolved_json())


def starter_plan(model: Path, target: str, folder: Path) -> Plan:
    """The plan to start from, with paths relative to the folder where it will lie.

    Args:
        model: folder or file of a model, or `package.module:function` of a factory.
        target: runtime of the engines.
        folder: of the plan.
    """
    from ptqd_export.models.load import declare_model  # and with it torch, which a command line that is wrong need not wait for

    known, source = _target(target), str(model)
    declared = declare_model(source, folder.absolute())
    named = re.fullmatch(FACTORY, source)
    section = ModelSection(factory=source) if named else _section(model, folder)
    return Plan(
        model=section,
        sampler=SamplerSection(
            name=declared.sampler,
            steps=min(STEPS, declared.noise_schedule.num_train_timesteps),
            eta=1.0 if SAMPLERS[declared.sampler].any_eta else SAMPLERS[declared.sampler].eta,
            guidance=_guidance(section, declared.null_class),
        ),
        precisions=("w8a8", "w4a8"),
        target=known,
        output=f"build/{source.rpartition(':')[2] if named else _name(model.absolute())}",
    )


def _section(model: Path, folder: Path) -> ModelSection:
    from ptqd_export.models.text.text_encoders import find_text_folders  # and with it torch, see above

    return ModelSection(path=Path(os.path.relpath(model, folder)).as_posix(), prompts=PROMPTS if find_text_folders(model) else None)


def _guidance(section: ModelSection, null_class: int | None) -> float:
    if section.prompts is not None:
        return TEXT_GUIDANCE
    return 1.0 if null_class is None else GUIDANCE


def _name(model: Path) -> str:
    return model.name if model.is_dir() else model.stem


def _target(name: str) -> TargetSection:
    known = get_args(TargetSection.model_fields["name"].annotation)
    if name not in known:
        raise UsageError("unknown target", found=name, expected=" or ".join(known), mend="correct --target")
    return TargetSection.model_validate({"name": name})
