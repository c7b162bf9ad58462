"""Checks of a plan that need its model or this machine."""

from __future__ import annotations

from engines.backends.onnxruntime.onnxruntime_session import check_provider
from engines.errors import UsageError
from engines.networks.conditioning import Conditioning
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.network.decoding import preview_tile, tile_of


def check_build(context: BuildContext) -> None:
    """Check, before anything is written, that the plan fits its model and this machine.

    Raises:
        UsageError: the plan does not fit the model.
        MissingBackendError: the device for calibration, the provider of the target, or what should measure is missing.
    """
    context.calibration_device.check()
    check_provider(context.plan.target.provider)
    _ = context.measured_with
    fit_settings(context).check_steps()
    for one in (context, *context.at_further_sizes.values()):
        tile_of(one)
        preview_tile(one)
    if context.model.control is not None and context.elsewhere is not None:
        raise UsageError(
            "A cluster cannot measure a network that takes residuals.",
            found="--ray with model.control",
            expected="a build on this machine",
            mend="leave --ray out",
        )
    conditioning = context.model.conditioning
    if context.guided and (conditioning is None or conditioning.null is None):
        raise UsageError(
            "The model cannot be guided.",
            found=f"guidance {context.guidance:g}, with a model that has no null condition",
            expected="guidance up to 1, or conditions with null values",
            mend=_mend(context.model.conditioning),
        )


def _mend(conditioning: Conditioning | None) -> str:
    if conditioning is None:
        return "set sampler.guidance to 1"
    return 'set sampler.guidance to 1; or give the condition that means "none", as model.null_class or as null.<input> in model.conditions'
