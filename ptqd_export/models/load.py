"""Find out what kind of model a path holds, and load it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engines.errors import UsageError
from engines.files import sha256
from ptqd_export.models.base import LoadedModel
from ptqd_export.plan import PlanFile


def load_model(plan_file: PlanFile) -> LoadedModel:
    """The plan's model.

    Raises:
        UsageError: no such model, or its kind is not supported.
    """
    from ptqd_export.models.diffusers_unet import load_diffusers

    return load_diffusers(existing(plan_file.model_path), plan_file.plan.model.null_class, plan_file.conditions_path)


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
