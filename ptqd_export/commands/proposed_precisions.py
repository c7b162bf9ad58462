"""Propose precisions for the GPU that will run the engines."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engines.backends.tensorrt.device.cuda import Cuda
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.errors import MissingBackendError, UsageError

DEFAULT = ("w8a8", "w4a8")
"""Precisions for ONNX Runtime, and for a GPU that is not known."""


@dataclass(frozen=True)
class Proposal:
    """Precisions, and why.

    Attributes:
        least: compute capability from which on they are proposed.
        precisions: names of the precisions.
        reason: why, as a comment of the plan.
    """

    least: tuple[int, int]
    precisions: tuple[str, ...]
    reason: str


PROPOSALS = (
    Proposal((10, 0), ("fp8", "nvfp4"), "it multiplies floats of 8 bits, and of 4 bits in blocks; noisy steps can run nvfp4"),
    Proposal((8, 9), ("fp8",), "it multiplies 8-bit floats; w8a8 has less noise, where TensorRT runs it in integers"),
    Proposal((7, 5), ("w8a8",), "it multiplies 8-bit integers and no 8-bit floats; integers of fewer bits run in the same kernels"),
)
"""From the newest GPUs to the oldest."""


def propose_precisions(target: str, compute_capability: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """Return precisions for the engines of a target, and why they are proposed, or None if they are those of every target.

    Args:
        target: name of the target.
        compute_capability: that of the GPU that will run the engines, such as "8.9"; None takes this machine's GPU if it has one.

    Raises:
        UsageError: the compute capability is none, is too old for TensorRT, or the target does not run on a GPU.
    """
    if target not in FLAVOURS:
        if compute_capability is not None:
            raise UsageError(
                "A compute capability is for engines of a GPU.",
                found=f"{compute_capability} with the target {target}",
                expected=f"one of the targets {' or '.join(FLAVOURS)}",
                mend="leave --compute-capability out, or change --target",
            )
        return DEFAULT, None
    found = compute_capability or _of_this_machine()
    if found is None:
        return DEFAULT, None
    proposal = next((one for one in PROPOSALS if _pair(found) >= one.least), None)
    if proposal is None:
        raise UsageError("TensorRT does not run on this GPU.", found=f"compute capability {found}", expected="7.5 or newer")
    return proposal.precisions, f"precisions for a GPU of compute capability {found}: {proposal.reason}"


def _of_this_machine() -> str | None:
    try:
        return Cuda().compute_capability()
    except MissingBackendError:
        return None


def _pair(compute_capability: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d{1,2}\.\d", compute_capability):
        raise UsageError("This is no compute capability.", found=compute_capability, expected="a number such as 8.9 or 12.0")
    major, minor = compute_capability.split(".")
    return int(major), int(minor)
