"""What the channels and sizes in a diffusers configuration mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import UsageError


def state_channels(inputs: int, outputs: int) -> int:
    """Channels of the state.

    More channels in than out: the rest is an image that is concatenated. Twice as many out as in: the second half is a learned
    variance, which no sampler here uses.

    Raises:
        UsageError: the numbers fit neither.
    """
    if outputs <= inputs or outputs == 2 * inputs:
        return min(inputs, outputs)
    raise UsageError(
        "The network's output is not shaped like its state.",
        found=f"{inputs} channels in, {outputs} out",
        expected="as many out as in, fewer where an image is concatenated to the state, or twice as many where variances are learned",
    )


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the state.

    Raises:
        UsageError: the configuration does not say.
    """
    size = config.get("sample_size")
    if size is None:
        raise UsageError(
            "The model does not say how large its samples are.",
            found="no sample_size in the denoiser's config.json",
            expected="a number, or [height, width]",
            mend="write the size that the model was trained at into config.json",
        )
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
