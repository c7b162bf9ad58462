"""Say why a network cannot be traced, and at which of its lines."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from engines.errors import PtqdError, first_line

_LIBRARY = Path(torch.__file__).parents[1]
_OWN = Path(__file__).parents[1]


def untraceable(error: BaseException) -> PtqdError:
    """Return the error for a network that torch's exporter does not trace.

    Args:
        error: what the exporter raised. Its cause is what the network or torch raised.
    """
    cause = error.__cause__ or error
    return PtqdError(
        "The network cannot be traced to a graph.",
        found=f"{type(cause).__name__}: {first_line(cause)}{_line(cause)}",
        expected="a forward whose Python code does not depend on the values of tensors",
        mend="replace branches on values by torch.where, and .item(), .tolist() and int() by operations on tensors",
    )


def _line(error: BaseException) -> str:
    """Return the innermost line of the network's own code, if there is one."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(Path(frame.filename).is_relative_to(folder) for folder in (_LIBRARY, _OWN)) and Path(frame.filename).is_file()
    ]
    return f", at {Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}" if own else ""
