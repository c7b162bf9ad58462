"""Check the guidance scale of a pipeline, inferred from what it made of the network's outputs: corrections hold for one scale only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engines.arrays import Float32
from engines.chain.denoiser import effective_guidance
from engines.chain.norm_guidance import NormGuidance
from engines.errors import UsageError
from ptqd_export.models.diffusers_models.transformers.transformer_family import AS_HERE, PipelineGuidance

TOLERANCE = 0.01
"""Relative difference up to which two scales count as equal."""

BY_SCHEDULE = "add a schedule with `ptqd-export schedule --guidance`"


def check_embedded_guidance(given: float | None, fitted: float | None) -> None:
    """Refuse a guidance scale that the pipeline gives to the network as an input, if the corrections were fitted at another.

    Raises:
        UsageError: the scales differ. None stands for a network without this input.
    """
    if given is not None and fitted is not None and abs(given - fitted) > TOLERANCE * fitted:
        raise _another_guidance(f"{given:.3g}", fitted, "build a bundle with this guidance in its plan", AS_HERE)


def check_guidance(output: Tensor, combined: Tensor, fitted: float, asked: PipelineGuidance = AS_HERE) -> None:
    """Refuse a guidance scale at which the corrections were not fitted.

    Args:
        output: output of the network, [batch, ...], or both branches in either order as one batch of twice the size.
        combined: what the pipeline made of the output and gives to the scheduler.
        fitted: guidance scale w of the schedule.
        asked: how the pipeline is asked for it.

    Raises:
        UsageError: the scale differs, or the pipeline did something other than guidance to the output.
    """
    if torch.equal(output, combined):
        scales, uncertainty = (1.0, 1.0), 0.0
    else:
        scales, uncertainty = _scales(output, combined)
    wanted = effective_guidance(fitted)
    if min(abs(scale - wanted) for scale in scales) > TOLERANCE * wanted + uncertainty:
        raise _another_guidance(f"{max(scales):.3g}", fitted, BY_SCHEDULE, asked)


def check_norm_guidance(outputs: Float32, combined: Float32, fitted: NormGuidance, eps: float, asked: PipelineGuidance) -> None:
    """Refuse a guidance that keeps the norm of the conditional output, if it is not the one that the corrections were fitted at.

    Args:
        outputs: latents [2 * batch, ...] of the conditional and the unconditional branch, or of the conditional one alone.
        combined: what the pipeline made of them, [batch, ...].
        fitted: guidance of the schedule.
        eps: relative precision of the pipeline's arithmetic.
        asked: how the pipeline is asked for it.

    Raises:
        UsageError: the scale differs, or the pipeline did something else.
    """
    if len(outputs) == len(combined):
        raise _another_guidance("1", fitted.guidance, BY_SCHEDULE, asked)
    branches = outputs.reshape(2, *combined.shape)
    expected, (near,) = fitted(branches), NormGuidance((1 + TOLERANCE) * fitted.guidance, fitted.patch)(branches)
    allowed = float(np.linalg.norm(near - expected[0])) + 4 * eps * float(np.linalg.norm(expected))
    if np.linalg.norm(combined - expected[0]) > allowed:
        raise _another_guidance("of another scale, or of another kind", fitted.guidance, BY_SCHEDULE, asked)


def _another_guidance(found: str, fitted: float, other: str, asked: PipelineGuidance) -> UsageError:
    return UsageError(
        "The corrections were fitted at another guidance scale.",
        found=f"guidance {found}",
        expected=f"{fitted:g}, as in the bundle's schedule",
        mend=f"call the pipeline with {asked.name}={fitted + asked.offset:g}, {other}, "
        "or use these corrections anyway: accept_guidance=True",
    )


def _scales(output: Tensor, combined: Tensor) -> tuple[tuple[float, float], float]:
    """Return both readings of `combined = a + s (b - a)`, and how far rounding may have moved them.

    Stable Diffusion puts the unconditional half first, so that `w = s`; DiT puts the conditional half first, so that `w = 1 - s`. Scales
    are rarely below 0.5: the larger reading is the likely one.
    """
    a, b = output.double().chunk(2) if len(output) % 2 == 0 else (output.double(), output.double())
    c = _once(combined.double(), len(a))
    if c is None:
        raise _not_guidance()
    direction, rounding = b - a, torch.finfo(combined.dtype).eps * c.norm()
    if not direction.any():
        raise _not_guidance()
    s = ((c - a) * direction).sum() / direction.square().sum()
    if (c - a - s * direction).norm() > 16 * rounding * max(1.0, abs(float(s))):
        raise _not_guidance()
    return (float(s), 1 - float(s)), float(rounding / direction.norm())


def _once(combined: Tensor, batch: int) -> Tensor | None:
    """Return every sample once, [batch, ...]: DiT gives each sample twice. None if the batch is neither."""
    if len(combined) == batch:
        return combined
    if len(combined) == 2 * batch and torch.equal(combined[:batch], combined[batch:]):
        return combined[:batch]
    return None


def _not_guidance() -> UsageError:
    return UsageError(
        "The scheduler did not get the guided output of the network.",
        found="no combination u + w (c - u) of the network's outputs at this step",
        expected="both branches in one network call or in two, and only guidance after them (guidance_rescale=0)",
        mend="leave out pipeline options that do more, or use the corrections anyway: accept_guidance=True",
    )
