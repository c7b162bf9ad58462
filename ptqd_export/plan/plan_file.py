"""Read a plan's file. No other module reads a user's `plan.json`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engines.errors import UsageError
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.plan.plan import Plan
from ptqd_export.plan.plan_errors import plan_error


@dataclass(frozen=True)
class PlanFile:
    """A plan, and the folder to which its paths are relative.

    Attributes:
        plan: the plan as written.
        folder: folder of the plan file.
        output: output folder from the command line, relative to the current folder; None takes the plan's.
    """

    plan: Plan
    folder: Path
    output: Path | None = None

    @property
    def model_path(self) -> Path:
        """Path of a model that is not created by a factory, unless what is written is the id of a model on a hub."""
        assert self.plan.model.path is not None
        return self.folder / self.plan.model.path

    @property
    def conditions_path(self) -> Path | None:
        return None if self.plan.model.conditions is None else self.folder / self.plan.model.conditions

    @property
    def prompts(self) -> tuple[str, ...] | Path | None:
        """The plan's prompts, or the file that holds them."""
        written = self.plan.model.prompts
        return self.folder / written if isinstance(written, str) else written

    @property
    def output_path(self) -> Path:
        return Path(os.path.normpath(self.folder / self.plan.output)) if self.output is None else self.output


def load_plan(path: Path) -> PlanFile:
    """Read a plan.

    Raises:
        UsageError: the file is missing, is not a JSON object, or is not a valid plan; then every problem is listed.
    """
    if not path.is_file():
        raise UsageError(
            "The plan is missing.",
            found=f"no file {path}",
            expected="a plan.json",
            mend="write one with `ptqd-export init`, or correct --plan",
        )
    return PlanFile(plan_of(read_json_object(path), path), path.absolute().parent)


def plan_of(content: Mapping[str, Any], source: Path | str = "The dict") -> Plan:
    """Validate the content of a plan.

    Args:
        content: the plan as JSON values.
        source: where the content comes from, for the message.

    Raises:
        UsageError: the plan is not valid; every problem is listed.
    """
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise plan_error(error, Plan, source) from error
