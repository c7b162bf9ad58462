"""Real data of the digits model: scikit-learn's handwritten digits as 16x16 images in [-1, 1] (1,797 images, no download)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIZE = 16
CLASSES = 10


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return all images, float32 [1797, 1, 16, 16] in [-1, 1], and their labels, int64 [1797]."""
    data = load_digits()
    small = torch.from_numpy(data.images.astype(np.float32)).unsqueeze(1) / 8.0 - 1.0
    images = torch.nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return images.clamp(-1.0, 1.0), torch.from_numpy(data.target.astype(np.int64))


def split(held_out: float = 0.2) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of the training and the held-out images, stratified by class; the split is always the same."""
    labels = load_digits().target
    train, test = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=0)
    return np.asarray(train), np.asarray(test)
