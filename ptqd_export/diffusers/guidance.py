"""Which guidance a pipeline applied, seen from what it made of the network's output: corrections hold for one scale only."""

from __future__ import annotations

import torch
from torch import Tensor

from engines.errors import UsageError

TOLERANCE = 0.01
"""Relative difference of scales that counts as none."""


def check_guidance(output: Tensor, combined: Tensor, fitted: float) -> None:
    """Refuse a guidance that the corrections were not fitted at.

    Args:
        output: what the network returned, [batch, ...], or both branches as one batch of twice the size.
        combined: what the pipeline made of it and gives to the scheduler.
        fitted: scale w of the schedule.

    Raises:
        UsageError: another scale, or something else than guidance was done to the output.
    """
    if torch.equal(output, combined):
        scales, uncertainty = (1.0, 1.0), 0.0
    else:
        scales, uncertainty = _scales(output, combined)
    if min(abs(scale - fitted) for scale in scales) > TOLERANCE * max(1.0, fitted) + uncertainty:
        raise UsageError(
            "The corrections were fitted at another guidance.",
            found=f"guidance {max(scales):.3g}",
            expected=f"{fitted:g}, as in the bundle's schedule",
            mend=f"give the pipeline guidance_scale={fitted:g}, add a schedule with `ptqd-export schedule --guidance`, or use these "
            "corrections all the same: accept_guidance=True",
        )


def _scales(output: Tensor, combined: Tensor) -> tuple[tuple[float, float], float]:
    """Both readings of `combined = a + s (b - a)`, and how far rounding may have moved them.

    Stable Diffusion puts the unconditional half first, so that `w = s`; DiT the conditional one, so that `w = 1 - s`. Guidance is
    hardly below 0.5: the larger reading is the likely one.
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
    """One of each sample [batch, ...]; DiT gives every one twice."""
    if len(combined) == batch:
        return combined
    if len(combined) == 2 * batch and torch.equal(combined[:batch], combined[batch:]):
        return combined[:batch]
    return None


def _not_guidance() -> UsageError:
    return UsageError(
        "The scheduler was given something else than the guided output of the network.",
        found="no combination u + w (c - u) of the two halves of the last batch",
        expected="one call of the network a step with both branches in it, and guidance alone afterwards (guidance_rescale=0)",
        mend="leave such options of the pipeline out, or use the corrections all the same: accept_guidance=True",
    )
