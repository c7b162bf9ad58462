"""Ask the committed classifier how much samples are like real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from engines.arrays import Float32

CLASSIFIER = Path(__file__).parent / "classifier.onnx"


def recognised(images: Float32) -> tuple[float, Float32]:
    """Mean probability of the digit that the classifier sees in each image [N, 3, 32, 32], and the features [N, 64]."""
    session = onnxruntime.InferenceSession(CLASSIFIER, providers=["CPUExecutionProvider"])
    logits, features = (np.asarray(output) for output in session.run(["logits", "features"], {"images": images.clip(-1, 1)}))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((exponentials.max(axis=1) / exponentials.sum(axis=1)).mean()), features
