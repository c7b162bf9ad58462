"""Engines of the target's own runtime, while statistics are measured."""

from __future__ import annotations

from engines.backends.tensorrt.tensorrt_backend import EngineSettings
from engines.networks.decoder import decoder_settings
from ptqd_export.measuring.target_engines import TargetEngines
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.finish.assemble import target_record


def target_engines(context: BuildContext, rows: int | None = None) -> TargetEngines:
    """Return the backend that builds and opens the engines of the plan's target, in the folder of the bundle.

    Args:
        context: context of the build.
        rows: most rows of a graph beside the networks; None takes the profile of the networks.
    """
    record = target_record(context)
    assert record.name != "onnxruntime"
    assert record.profile is not None
    settings = EngineSettings.of(record.name, record.profile, record.workspace_gib)
    return TargetEngines(settings if rows is None else decoder_settings(settings, rows), context.plan_file.output_path)
