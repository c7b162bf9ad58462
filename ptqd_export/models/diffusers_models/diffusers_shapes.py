"""The shape of the state, from the channels and sizes in a diffusers configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engines.errors import UsageError


def state_channels(inputs: int, outputs: int) -> int:
    """Return the number of channels of the state.

    If there are more channels in than out, the rest is an image that is concatenated. If there are twice as many out as in, the second half
    is a learned variance, which no sampler here uses.

    Raises:
        UsageError: the numbers fit neither case.
    """
    if outputs <= inputs or outputs == 2 * inputs:
        return min(inputs, outputs)
    raise UsageError(
        "The network's output is not shaped like its state.",
        found=f"{inputs} channels in, {outputs} out",
        expected="as many out as in, fewer if an image is concatenated to the state, or twice as many if variances are learned",
    )


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of the state.

    Raises:
        UsageError: the configuration has no size, or none of two sides.
    """
    size = config.get("sample_size")
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)):
        raise UsageError(
            "The model does not say how large its samples are.",
            found=f"sample_size = {json.dumps(size)} in the denoiser's config.json",
            expected="a number, or [height, width]",
            mend="write the size at which the model was trained into config.json",
        )
    height, width = sides
    return height, width
