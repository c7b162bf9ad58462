"""What was measured with a bundle after it was built: times per step, evaluations, comparisons."""

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
from engines.bundle.image_size import size_name
from engines.errors import UsageError
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.records.times_file import MachineTimes, read_times

Result = TypeVar("Result", CompareResult, EvaluationResult)


@dataclass(frozen=True)
class Evidence:
    """Figures that are not part of the portable bundle."""

    times: tuple[MachineTimes, ...] = ()
    evaluations: tuple[EvaluationResult, ...] = ()
    comparisons: tuple[CompareResult, ...] = ()

    @classmethod
    def load(cls, bundle: Bundle, evaluations: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> Evidence:
        """Read the times in the bundle's folder, and files written by `ptqd-run evaluate` and `ptqd-run compare`.

        Raises:
            UsageError: a file is not of the expected kind, or was made with another bundle.
            BundleError: the times are damaged.
        """
        return cls(
            tuple(read_times(path) for path in sorted((bundle.folder / "local").glob("*/times.json"))),
            tuple(_result(EvaluationResult, path, bundle, "evaluate").with_current_names() for path in evaluations),
            tuple(_result(CompareResult, path, bundle, "compare") for path in comparisons),
        )


def _result(kind: type[Result], path: Path, bundle: Bundle, command: str) -> Result:
    content = read_json_object(path)
    try:
        json.dumps(content, allow_nan=False)  # pydantic would accept NaN and infinity
        result = TypeAdapter(kind).validate_python(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is not a valid result of `ptqd-run {command}`.",
            found=_reason(error),
            expected=f"a file of `ptqd-run {command} --json`",
        ) from error
    if not _is_whole(result):
        raise UsageError(
            f"{path} is incomplete.", found="no seeds, or steps that differ between precisions", expected="the file as it was written"
        )
    _check_is_of(bundle, path, result)
    return result


def _is_whole(result: CompareResult | EvaluationResult) -> bool:
    """Return whether a result has everything that the page relies on."""
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


def _check_is_of(bundle: Bundle, path: Path, result: CompareResult | EvaluationResult) -> None:
    """Refuse a file of another size or other weights, or of a precision or schedule that the bundle lacks. No file names its bundle."""
    first = bundle.manifest.model.image_size
    if result.size is not None and result.size != tuple(first):
        raise UsageError(
            f"{path} belongs to another size of the images.",
            found=size_name(result.size),
            expected=f"{size_name(first)}, the bundle's first size, which the report is about",
            mend=f"run the command again without --size {size_name(result.size)}",
        )
    if isinstance(result, EvaluationResult) and result.loras:
        raise UsageError(
            f"{path} was made with a LoRA.",
            found=", ".join(result.loras),
            expected="the bundle's own weights, which the report is about",
            mend="run the command again without --lora",
        )
    unknown = [name for name in _precisions(result) if name not in bundle.manifest.precisions]
    if result.schedule not in bundle.schedules:
        unknown.append(f"schedule {result.schedule}")
    if unknown:
        raise UsageError(
            f"{path} belongs to another bundle.",
            found=", ".join(unknown),
            expected=f"precisions among {', '.join(bundle.manifest.precisions)}, and a schedule of this bundle",
        )
