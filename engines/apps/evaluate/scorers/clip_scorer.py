"""CLIP score (Hessel et al. 2021): how well pictures fit their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engines.apps.evaluate.extractor import FEATURES, Extractor, open_graph
from engines.arrays import Float32, Int64
from engines.errors import BundleError, UsageError
from engines.host.machine import cores
from engines.networks.prompts import GraphEncoder, TextPart, read_tokenizer

IMAGE, TEXT, TOKENIZER = "image.onnx", "text.onnx", "tokenizer.json"
"""Files of the folder: an extractor of image embeddings; a graph from token ids int64 [batch, tokens] to text embeddings; a tokenizer."""


class ClipScorer:
    """Scores a picture as `100 max(cos(image embedding, embedding of its prompt), 0)`.

    Args:
        folder: folder that `ptqd-export extractor clip` wrote.
        prompts: prompt of every conditioning row.

    Raises:
        UsageError: the folder is not such a folder.
        MissingBackendError: tokenizers or onnxruntime is not installed.
    """

    figure = "clip_score"
    paired = False

    def __init__(self, folder: Path, prompts: Sequence[str]) -> None:
        missing = [name for name in (IMAGE, TEXT, TOKENIZER) if not (folder / name).is_file()]
        if missing:
            raise UsageError(
                "This is no CLIP model.",
                found=f"no {', '.join(missing)} in {folder}",
                expected="a folder written by `ptqd-export extractor clip`",
            )
        self._images = Extractor(folder / IMAGE)
        self.extractor = self._images.name or folder.name
        self._prompts = _normalized(_embeddings(folder, prompts))

    def check(self, shape: Sequence[int]) -> None:
        """Check that the network takes images [C, H, W], see `Extractor.check`."""
        self._images.check(shape, "the samples")

    def __call__(self, images: Float32, _full_precision: Float32 | None, rows: Int64, /) -> Float32:
        """See `SampleScorer`."""
        cosines = (_normalized(self._images(images).features) * self._prompts[rows]).sum(axis=1)
        return np.asarray(100 * cosines.clip(0), dtype=np.float32)


def _embeddings(folder: Path, prompts: Sequence[str]) -> Float32:
    """Return text embeddings [prompts, D]."""
    graph = folder / TEXT
    tokens = open_graph(graph, cores()).get_inputs()[0].shape[1]
    try:
        tokenizer = read_tokenizer((folder / TOKENIZER).read_bytes(), folder / TOKENIZER, tokens)
    except BundleError as error:
        raise UsageError("The CLIP model's tokenizer cannot be used.", found=str(error), mend="export the CLIP model again") from error
    return TextPart(tokenizer, GraphEncoder(graph, (FEATURES,))).encode(prompts)[FEATURES]


def _normalized(vectors: Float32) -> Float32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
