"""What was measured with a bundle after it was built: times of a step, evaluations, comparisons."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from engines.apps.compare.compare_result import CompareResult
from engines.apps.evaluate.evaluation_result import EvaluationResult
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.records.times_file import MachineTimes, read_times

Result = TypeVar("Result", CompareResult, EvaluationResult)


@dataclass(frozen=True)
class Evidence:
    """Figures that are no part of the portable bundle."""

    times: tuple[MachineTimes, ...] = ()
    evaluations: tuple[EvaluationResult, ...] = ()
    comparisons: tuple[CompareResult, ...] = ()

    @classmethod
    def load(cls, bundle: Bundle, evaluations: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> Evidence:
        """The times that lie in the bundle's folder, and what files of `ptqd-run evaluate` and `ptqd-run compare` say.

        Raises:
            UsageError: a file is not what it should be, or was made with another bundle.
            BundleError: times are damaged.
        """
        return cls(
            tuple(read_times(path) for path in sorted((bundle.folder / "local").glob("*/times.json"))),
            tuple(_result(EvaluationResult, path, bundle, "evaluate") for path in evaluations),
            tuple(_result(CompareResult, path, bundle, "compare") for path in comparisons),
        )


def _result(kind: type[Result], path: Path, bundle: Bundle, command: str) -> Result:
    content = read_json_object(path)
    try:
        json.dumps(content, allow_nan=False)  # which pydantic would let pass
        result = TypeAdapter(kind).validate_python(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not what `ptqd-run {command}` writes.", found=_reason(error), expected=f"a file of `ptqd-run {command} --json`"
        ) from error
    if not _is_whole(result):
        raise UsageError(
            f"{path} is not whole.", found="no seeds, or steps that differ between precisions", expected="the file as it was written"
        )
    _check_is_of(bundle, path, result.schedule, _precisions(result))
    return result


def _is_whole(result: CompareResult | EvaluationResult) -> bool:
    """What the page takes for granted of a result."""
    if isinstance(result, EvaluationResult):
        return bool(result.seeds)
    steps = {tuple(step.step for step in figures.steps) for figures in result.precisions.values()}
    return len(steps) == 1 and all(figures.worst_step in next(iter(steps)) for figures in result.precisions.values())


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _precisions(result: CompareResult | EvaluationResult) -> Collection[str]:
    return result.precisions if isinstance(result, CompareResult) else result.precision_steps


def _check_is_of(bundle: Bundle, path: Path, schedule: str, precisions: Collection[str]) -> None:
    """Such a file does not say which bundle it is of; one that names what the bundle has not is of another."""
    unknown = [name for name in precisions if name not in bundle.manifest.precisions]
    if f"schedules/{schedule}.json" not in bundle.manifest.files:
        unknown.append(f"schedule {schedule}")
    if unknown:
        raise UsageError(
            f"{path} is of another bundle.",
            found=", ".join(unknown),
            expected=f"precisions of {', '.join(bundle.manifest.precisions)}, and a schedule of this bundle",
        )
