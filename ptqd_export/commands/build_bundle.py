"""Build a bundle from Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.api.open_bundle import OpenBundle, open_bundle
from engines.cluster.session import Cluster
from ptqd_export.plan import Plan, PlanFile, load_plan, plan_of

if TYPE_CHECKING:
    from ptqd_export.stages.reporter import BuildProgress


def build(
    plan: Plan | Mapping[str, Any] | str | PathLike[str],
    *,
    folder: str | PathLike[str] = ".",
    output: str | PathLike[str] | None = None,
    fresh: bool = False,
    cluster: Cluster | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
) -> OpenBundle:
    """Build the bundle of a plan like `ptqd-export build`, reusing stages that an earlier build finished, and open it.

    Args:
        plan: a plan, its content as a dict, or the path of a `plan.json`.
        folder: folder to which the paths in a plan or dict are relative; those in a file are relative to the file.
        output: folder of the bundle, relative to the current folder; None takes the plan's.
        fresh: discard the stages that an earlier build finished.
        cluster: cluster that measures the statistics; None measures them in this process, with the same result.
        on_progress: called whenever a stage starts, advances or finishes.

    Raises:
        UsageError: the plan is invalid or does not fit the model, or the output cannot be written. Nothing is written.
        PtqdError: a stage failed, or another process is writing to the output folder. Finished stages are kept.
    """
    written = PlanFile(*_read(plan, Path(folder)), None if output is None else Path(output))
    from ptqd_export.stages.run_build import run_build  # imports torch, for which an invalid plan need not wait

    run_build(written, fresh=fresh, cluster=cluster, on_progress=on_progress)
    return open_bundle(written.output_path)


def _read(plan: Plan | Mapping[str, Any] | str | PathLike[str], folder: Path) -> tuple[Plan, Path]:
    """Return the plan, and the folder to which its paths are relative."""
    if isinstance(plan, Plan):
        return plan, folder.absolute()
    if isinstance(plan, Mapping):
        return plan_of(plan), folder.absolute()
    read = load_plan(Path(plan))
    return read.plan, read.folder
