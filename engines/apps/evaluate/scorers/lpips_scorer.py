"""LPIPS (Zhang et al. 2018): how different two pictures look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.apps.evaluate.extractor import NAME, open_graph
from engines.apps.pictures.images import COLOR_CHANNELS
from engines.arrays import Float32, Int64
from engines.chain.finite import is_finite
from engines.errors import PtqdError, UsageError
from engines.host.machine import cores

INPUTS = ("images", "others")
DISTANCE = "distance"

LEAST_SIDE = "least_side"
"""Key of the least width and height in the graph's metadata. ONNX Runtime can crash on pictures that vanish in a network's pooling."""


class LpipsScorer:
    """The distance between a sample and the full-precision sample of the same noise.

    Args:
        path: ONNX file that `ptqd-export extractor lpips` wrote: inputs `images` and `others`, output `distance` [batch].

    Raises:
        UsageError: the file is not such a graph.
        MissingBackendError: onnxruntime is not installed.
    """

    figure = "lpips"
    paired = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._session = open_graph(path, cores())
        names = [value.name for value in (*self._session.get_inputs(), *self._session.get_outputs())]
        metadata = self._session.get_modelmeta().custom_metadata_map
        if names != [*INPUTS, DISTANCE] or not metadata.get(LEAST_SIDE, "").isdecimal():
            raise UsageError(
                "This is no LPIPS network.",
                found=f"{path} with {', '.join(names)}",
                expected="a file written by `ptqd-export extractor lpips`",
            )
        self.extractor: str = metadata.get(NAME) or path.name
        self._least_side = int(metadata[LEAST_SIDE])

    def check(self, shape: Sequence[int]) -> None:
        """Check that the network takes images [C, H, W].

        Raises:
            UsageError: the images are too small, or neither gray nor RGB.
        """
        if len(shape) != 3 or shape[0] not in COLOR_CHANNELS or min(shape[1:]) < self._least_side:
            raise UsageError(
                "The LPIPS network does not take the samples.",
                found=f"images of shape {list(shape)}",
                expected=f"gray or RGB, at least {self._least_side} pixels wide and high",
            )

    def __call__(self, images: Float32, full_precision: Float32 | None, _rows: Int64, /) -> Float32:
        """See `SampleScorer`."""
        assert full_precision is not None
        pair = (one.clip(-1, 1).astype(np.float32) for one in (images, full_precision))
        try:
            (distances,) = self._session.run([DISTANCE], dict(zip(INPUTS, pair, strict=True)))
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise PtqdError("The LPIPS network failed.", found=f"{self._path}: {error}") from error
        if not is_finite(distances):
            raise PtqdError("The LPIPS network's output is not finite.", found=f"NaN or infinity from {self._path}")
        return np.asarray(distances)
