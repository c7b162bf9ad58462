"""Residuals of ControlNets and T2I adapters, as pipelines give them to a U-Net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from engines.bundle.manifest import ControlRecord, InputRecord
from engines.errors import UsageError
from ptqd_export.models.conditions import DOWN, INTRABLOCK, MID

ARGUMENTS = (DOWN, MID, INTRABLOCK)
"""Arguments of diffusers' U-Nets that are residuals."""

WITH_CONTROL = 'build a bundle with "control": {"kind": "controlnet"} or {"kind": "t2i_adapter"} in the plan\'s section model'


def given_residuals(others: Mapping[str, Any], record: ControlRecord | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a pipeline's residuals by the names of the engines' inputs, and the arguments that are none.

    Arguments that no input of the engines belongs to are left among the latter.
    """
    inputs = () if record is None else record.inputs
    taken = {name for name in ARGUMENTS if any(one.name.startswith(name) for one in inputs)}
    found: dict[str, Tensor] = {}
    for name in taken & others.keys():
        value = others[name]
        if value is not None:
            found |= {name: value} if name == MID else {f"{name}_{index}": one for index, one in enumerate(value)}
    return found, {name: value for name, value in others.items() if name not in taken}


def check_residuals(given: Mapping[str, NDArray[Any]], inputs: Sequence[InputRecord], rows: int) -> Mapping[str, NDArray[Any]]:
    """Return residuals with one row for each of the network's.

    Raises:
        UsageError: the engines take no such residual, or it has another shape.
    """
    shapes = {one.name: (rows, *one.shape) for one in inputs}
    for name, value in given.items():
        if value.shape != shapes.get(name):
            raise UsageError(
                "The residuals are not those that the engines take.",
                found=f"{name} of shape {list(value.shape)}",
                expected=f"{list(shapes[name])}" if name in shapes else f"only {', '.join(shapes)}",
                mend="use a control network for this model, and a control image of the size of the bundle's images",
            )
    return given
