"""Sizes of images that a plan asks for: whether a model can have them, and which sizes are near."""

from __future__ import annotations

from collections.abc import Sequence

from engines.errors import UsageError


def refuse_size(size: Sequence[int] | None, reason: str) -> None:
    """Refuse every size, for a model that has its own.

    Raises:
        UsageError: a size is asked for.
    """
    if size is not None:
        raise UsageError(
            "The configuration of this model fixes its size.",
            found=f"a size of {_written(size)} in the plan; {reason}",
            expected="no model.size and no model.sizes",
            mend="leave them out of the plan",
        )


def state_sides(size: Sequence[int], pixels: int, step: int, stated: str | None = None) -> tuple[int, ...]:
    """Return height and width of the states of images of a size.

    Args:
        size: height and width of the images in pixels.
        pixels: pixels along each side of a state's element.
        step: elements of which both sides of a state must be multiples.
        stated: where the size comes from, for messages; None is the plan.

    Raises:
        UsageError: a side is no multiple.
    """
    whole = pixels * step
    if any(side % whole for side in size):
        near = (dict.fromkeys((max(side // whole, 1) * whole, -(-side // whole) * whole)) for side in size)
        height, width = (" or ".join(map(str, sides)) for sides in near)
        raise UsageError(
            "The size of the images does not fit the model.",
            found=stated or f"{_written(size)} pixels",
            expected=f"multiples of {whole} pixels",
            mend=f"the nearest sizes have a height of {height} and a width of {width}",
        )
    return tuple(side // pixels for side in size)


def _written(size: Sequence[int]) -> str:
    return str(list(size))
