"""What a plan can be wrong about once its model is known."""

from __future__ import annotations

from engines.backends.onnxruntime.onnxruntime_session import check_provider
from engines.errors import UsageError
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.fit.fit_inputs import fit_settings


def check_build(context: BuildContext) -> None:
    """What a plan can be wrong about once its model is known; called before anything is written.

    Raises:
        UsageError: it does not fit.
        MissingBackendError: there is no such device to calibrate or to run on.
    """
    context.calibration_device.check()
    check_provider(context.plan.target.provider)
    _ = fit_settings(context).level_shift
    conditioning = context.model.conditioning
    if context.guided and (conditioning is None or conditioning.null is None):
        raise UsageError(
            "The model cannot be guided.",
            found=f"guidance {context.plan.sampler.guidance:g}, and a model without a null condition",
            expected="guidance 1, or conditions with their null values",
            mend="set sampler.guidance to 1",
        )
