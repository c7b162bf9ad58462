"""Engines of the target's own runtime, while statistics are measured."""

from __future__ import annotations

from engines.backends.tensorrt.tensorrt_backend import EngineSettings
from ptqd_export.measuring.target_engines import TargetEngines
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.finish.assemble import target_record


def target_engines(context: BuildContext) -> TargetEngines:
    """Return the backend that builds and opens the engines of the plan's target, in the folder of the bundle."""
    record = target_record(context)
    assert record.name != "onnxruntime"
    assert record.profile is not None
    return TargetEngines(EngineSettings.of(record.name, record.profile, record.workspace_gib), context.plan_file.output_path)
