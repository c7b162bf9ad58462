"""The matrix that rotates blocks of channels."""

from __future__ import annotations

import numpy as np

from engines.arrays import Float32


def hadamard(size: int) -> Float32:
    """Return the Hadamard matrix of a power of two (Sylvester 1867), divided by the root of its size: symmetric and orthogonal, float32."""
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.float32(size**0.5), dtype=np.float32)
