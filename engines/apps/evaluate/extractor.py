"""The feature extractor: any image network in ONNX, whose outputs are found by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.apps.evaluate.image_archive import CHANNELS
from engines.arrays import Float32
from engines.backends.onnxruntime.onnxruntime_session import open_session
from engines.bundle.bundle_files import is_plain
from engines.chain.finite import is_finite
from engines.errors import MissingBackendError, PtqdError, UsageError
from engines.host.files import sha256
from engines.host.machine import cores
from engines.untrusted.external_data import external_files

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits"

NAME = "extractor"
"""Key of an extractor's name in its graph's metadata."""

SMALL_NAME = "ptqd-small-1"
SMALL = Path(__file__).with_name(f"{SMALL_NAME}.onnx")
"""The extractor that ships for a first look, made by `tools/small_extractor/train.py`. Its name changes whenever its features do."""

SPATIAL_LIMIT = 2048
"""Maximum dimension of spatial features. Of Inception's 768 maps of 17 x 17 it keeps the first 7: the 2,023 dimensions of sFID."""


@dataclass(frozen=True, eq=False)
class Features:
    """Outputs of an extractor for n images.

    Attributes:
        features: [n, D] features.
        spatial: [n, height * width * channels] maps, channels varying fastest; None if the extractor gives none.
        logits: [n, K] class logits, before the softmax; None if the extractor gives none.
    """

    features: Float32
    spatial: Float32 | None
    logits: Float32 | None


class ExtractorFailedError(PtqdError):
    """The runtime could not run the extractor on these images."""


class Extractor:
    """An ONNX graph with one image input, float32 [batch, channels, height, width] in [-1, 1], run by ONNX Runtime on the CPU.

    Its outputs are `features` [batch, D] or [batch, D, 1, 1], which may have another name if no other output has such a shape, and
    optionally `spatial` [batch, channels, height, width] for sFID and `logits` [batch, K] for the Inception Score.

    Attributes:
        path: ONNX file.
        digest: sha256 of the file.
        name: name in the graph's metadata, which is shown beside every figure; None if it has none.

    Args:
        path: ONNX file.
        threads: number of CPU threads; None takes every core that the process may use.

    Raises:
        MissingBackendError: onnxruntime is not installed.
        UsageError: the file is not such a graph.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._session = open_graph(path, threads or cores())
        self.path = path
        self.digest = sha256(path)
        self.name = self._session.get_modelmeta().custom_metadata_map.get(NAME)
        self._input, self.input_shape = self._image_input()
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        self._features = self._find_features(outputs)
        self._outputs = [self._features, *(name for name in (SPATIAL, LOGITS) if name in outputs)]

    @property
    def gives_spatial(self) -> bool:
        return SPATIAL in self._outputs

    @property
    def gives_logits(self) -> bool:
        return LOGITS in self._outputs

    def __call__(self, images: Float32) -> Features:
        """Return the features of images [n, C, H, W]; values beyond [-1, 1] are clipped.

        Raises:
            PtqdError: the extractor failed, or its output is not finite.
        """
        feeds = {self._input: images.clip(-1, 1).astype(np.float32, copy=False)}
        try:
            values = self._session.run(self._outputs, feeds)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ExtractorFailedError(
                "The feature extractor failed.", found=f"{self.path} on images {list(images.shape)}: {error}"
            ) from error
        if not all(is_finite(value) for value in values):
            raise PtqdError("The feature extractor's output is not finite.", found=f"NaN or infinity from {self.path}")
        found = dict(zip(self._outputs, values, strict=True))
        spatial = found.get(SPATIAL)
        return Features(
            features=found[self._features].reshape(len(images), -1),
            spatial=None if spatial is None else flat_maps(spatial),
            logits=found.get(LOGITS),
        )

    def check(self, shape: Sequence[int], whose: str) -> Features:
        """Check that the extractor takes images [C, H, W], and return the features of one black image.

        Raises:
            UsageError: the extractor does not take such images.
            PtqdError: its output is not finite.
        """
        if len(shape) != 3 or any(isinstance(side, int) and side != own for side, own in zip(self.input_shape, shape, strict=True)):
            raise UsageError(
                f"The feature extractor does not take {whose}.",
                found=f"images of shape {list(shape)}",
                expected=f"{[side if isinstance(side, int) else 'any' for side in self.input_shape]}, as in {self.path}",
                mend="add resizing, or gray-to-RGB conversion, to the extractor's graph",
            )
        try:
            return self(np.full((1, *shape), -1, dtype=np.float32))
        except ExtractorFailedError as error:
            raise UsageError(
                f"The feature extractor fails on {whose}.",
                found=f"images of shape {list(shape)}",
                expected=f"[1 or 3, height, width], unless {self.path} is made for other images",
                mend="give images of 1 or 3 channels: without alpha, with the channels first, and decoded where they are latents"
                if shape[0] not in CHANNELS
                else f"give images of a size that the extractor takes: {error.__cause__}",
            ) from error

    def _image_input(self) -> tuple[str, tuple[int | str | None, ...]]:
        inputs = self._session.get_inputs()
        if len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(inputs[0].shape) == 4 and not isinstance(inputs[0].shape[0], int):
            return str(inputs[0].name), tuple(inputs[0].shape[1:])
        raise UsageError(
            "The feature extractor does not take images.",
            found=f"{self.path} with " + " and ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs),
            expected="one input, tensor(float) [batch, channels, height, width] with a dynamic batch size",
        )

    def _find_features(self, outputs: dict[str, Sequence[Any]]) -> str:
        vectors = [name for name, shape in outputs.items() if _is_vector(shape) and name not in (SPATIAL, LOGITS)]
        if FEATURES in vectors:
            return FEATURES
        if len(vectors) == 1:
            return vectors[0]
        raise UsageError(
            "The feature extractor has no output that can be identified as features.",
            found=f"{self.path} with " + " and ".join(f"{name} {list(shape)}" for name, shape in outputs.items()),
            expected="an output called features, [batch, D], or exactly one output [batch, D] besides logits",
        )


def flat_maps(maps: Float32) -> Float32:
    """Flatten maps [n, C, H, W] to [n, H * W * channels], keeping as many of the first channels as fit into `SPATIAL_LIMIT`.

    Channels vary fastest, as in the statistics files that sFID was published with.

    Raises:
        UsageError: not even one channel fits.
    """
    _, _, height, width = maps.shape
    if height * width > SPATIAL_LIMIT:
        raise UsageError(
            "The feature extractor's spatial maps are too large.",
            found=f"{height} x {width}",
            expected=f"at most {SPATIAL_LIMIT} pixels",
            mend="pool them in the extractor's graph, or remove the output",
        )
    channels = SPATIAL_LIMIT // (height * width)
    return np.moveaxis(maps[:, :channels], 1, -1).reshape(len(maps), -1)


def _is_vector(shape: Sequence[Any]) -> bool:
    return len(shape) == 2 or (len(shape) == 4 and list(shape[2:]) == [1, 1])


def _check_weights(path: Path) -> None:
    """Refuse external weights that are not beside the file, because runtimes, old and new, open whatever path a graph names."""
    try:
        outside = [name for name in external_files(path) if not is_plain(name) or not (path.parent / name).is_file()]
    except (OSError, ValueError) as error:
        raise UsageError("The feature extractor cannot be read.", found=f"{path}: {error}", expected="an ONNX file") from error
    if outside:
        raise UsageError(
            "The feature extractor's weights are not beside it.",
            found=f"{path} refers to {min(outside)!r}",
            expected="weights in a file beside it",
        )


def open_graph(path: Path, threads: int) -> Any:
    """Open an ONNX file that a user brought.

    Raises:
        MissingBackendError: onnxruntime is not installed.
        UsageError: there is no such file, or it is no graph that ONNX Runtime can run, or its weights are elsewhere.
    """
    if not path.is_file():
        raise UsageError("There is no feature extractor.", found=f"no file {path}", expected="an ONNX file")
    _check_weights(path)
    try:
        return open_session(path, {}, threads)
    except MissingBackendError:
        raise
    except PtqdError as error:
        raise UsageError(
            "ONNX Runtime refuses the feature extractor.",
            found=f"{path}: {error.__cause__}",
            expected="an ONNX graph that ONNX Runtime can run",
        ) from error
