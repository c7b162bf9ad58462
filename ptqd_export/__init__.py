"""The exporter: plan, model loading, tracing, Q/DQ graphs, the build, `ptqd-export`.

The names in `__all__` are public and stay; docs/python.md describes them. They are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.cluster.session import Cluster
    from ptqd_export.commands.build_bundle import build
    from ptqd_export.commands.starter import starter_plan
    from ptqd_export.plan import Plan
    from ptqd_export.schedules.add_schedule import AddedSchedule, add_schedule
    from ptqd_export.schedules.settings import ScheduleRequest
    from ptqd_export.stages.reporter import BuildProgress

    __version__: str

__all__ = [
    "AddedSchedule",
    "BuildProgress",
    "Cluster",
    "Plan",
    "ScheduleRequest",
    "__version__",
    "add_schedule",
    "build",
    "starter_plan",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562). Imports are not statements: every module would depend on them."""
    match name:
        case "__version__":
            found: object = import_module("importlib.metadata").version("ptqd-export")
        case "Cluster":
            found = import_module("engines.cluster.session").Cluster
        case "Plan":
            found = import_module("ptqd_export.plan").Plan
        case "ScheduleRequest":
            found = import_module("ptqd_export.schedules.settings").ScheduleRequest
        case "BuildProgress":
            found = import_module("ptqd_export.stages.reporter").BuildProgress
        case "build":
            found = import_module("ptqd_export.commands.build_bundle").build
        case "starter_plan":
            found = import_module("ptqd_export.commands.starter").starter_plan
        case "AddedSchedule" | "add_schedule":
            found = getattr(import_module("ptqd_export.schedules.add_schedule"), name)
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
