"""Classify samples with the committed classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from engines.arrays import Float32, Int64

TOOLS = Path(__file__).parents[1]
CLASSIFIERS: Mapping[tuple[int, ...], Path] = {
    (1, 16, 16): TOOLS / "digits" / "classifier.onnx",
    (3, 32, 32): TOOLS / "coloured" / "classifier.onnx",
}
"""Classifier file by the shape of an image."""


def seen(images: Float32) -> tuple[Float32, Float32]:
    """Return logits [N, 10] and features [N, 64] of images [N, C, H, W], which are clipped to [-1, 1]."""
    session = onnxruntime.InferenceSession(CLASSIFIERS[images.shape[1:]], providers=["CPUExecutionProvider"])
    logits, features = session.run(["logits", "features"], {"images": images.clip(-1, 1)})
    return np.asarray(logits), np.asarray(features)


def recognised(images: Float32, labels: Int64) -> float:
    """Share of the images in which the classifier recognises the requested digit."""
    logits, _ = seen(images)
    return float((logits.argmax(axis=1) == labels).mean())


def confidence(logits: Float32) -> float:
    """Mean probability of the most likely digit, from logits [N, 10]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((exponentials.max(axis=1) / exponentials.sum(axis=1)).mean())
