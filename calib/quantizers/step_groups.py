"""Groups of neighbouring steps, each with activation scales of its own. All groups share the integers and scales of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.arrays import Float64

if TYPE_CHECKING:
    from calib.quantizers.quantize import Quantizer
    from calib.quantizers.quantized_layer import QuantizedLayer
    from calib.quantizers.rules.precision import Precision


@dataclass(frozen=True)
class StepGroup:
    """A group of steps.

    Attributes:
        steps: steps of the calibrated chain whose states give the group its activation scales.
        below: bound that the timesteps of the group lie below, whatever chain they belong to; infinite for the noisiest group.
    """

    steps: tuple[int, ...]
    below: float = math.inf


FINEST_GROUPS = 8
"""Number of equal groups that chosen ones are put together from. Fewer miss where a chain changes, more cost scales to search."""


def equal_groups(steps: Sequence[int], count: int, timesteps: Float64) -> list[StepGroup]:
    """Divide steps into groups of about equal length, the noisiest first.

    Args:
        steps: steps in ascending order.
        count: number of groups; fewer are made if there are fewer steps.
        timesteps: [all steps] falling timesteps of the chain. A bound lies halfway between the timesteps of neighbouring groups.
    """
    count = min(count, len(steps))
    ends = [len(steps) * index // count for index in range(count + 1)]
    bounds = [math.inf, *((timesteps[steps[end - 1]] + timesteps[steps[end]]) / 2 for end in ends[1:-1])]
    return [StepGroup(tuple(steps[begin:end]), float(below)) for begin, end, below in zip(ends[:-1], ends[1:], bounds, strict=True)]


def together(groups: Sequence[StepGroup]) -> StepGroup:
    """Return neighbouring groups as one."""
    return StepGroup(tuple(step for group in groups for step in group.steps), groups[0].below)


def groups_of(precision: Precision, groups: Sequence[StepGroup]) -> list[StepGroup]:
    """Return the groups that a precision has: a single one for all steps if its activations have no scales."""
    return list(groups) if precision.quantizes_activations else [together(groups)]


def with_activations(layer: QuantizedLayer, quantizer: Quantizer) -> QuantizedLayer:
    """Return a layer with the activation quantizers that another quantizer of the same network finds."""
    return replace(
        layer, input=quantizer.input_quantizer(layer.layer, layer.rule), output=quantizer.output_quantizer(layer.layer, layer.rule)
    )
