"""Counter-based noise: the noise of sample `n` depends only on `(seed, n, step)`, not on batch size, order or worker.

**Words.** The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a keyed bijection from a
counter of four 64-bit words to four 64-bit words. The key is `(seed, 0)` and the counter `(block, sample, step, stream)`, both
least significant word first, with `seed` in [0, 2^64) and `sample` in [0, 2^63). For a given `(sample, step, stream)` the blocks
are 1, 2, 3, ... and their concatenated outputs are the sequence of words: word `w` is output `w mod 4` of block `1 + w div 4`.
(Block 0 is never used: the words are numpy's raw output, and numpy increments the counter before it draws.)

**Streams.** Stream 0 is the start of the chain, with step word 0. Stream 1 is the noise of a step, with step word `i`, where 0 is the
noisiest. Stream 2 chooses the conditioning row, with step word 0.

**Normals.** Each pair of words gives two standard normals (Box and Muller 1958). For pair `j`:

    u1 = ((word[2j] div 2^11) + 1) / 2^53          in (0, 1]
    u2 = (word[2j+1] div 2^11) / 2^53              in [0, 1)
    z[2j]   = sqrt(-2 ln u1) cos(2 pi u2)
    z[2j+1] = sqrt(-2 ln u1) sin(2 pi u2)

in float64, each rounded to float32 at the end. The `z` fill the sample's shape in row-major order; if the shape has an odd number of
values, the last `z` is dropped. The uniforms are exact. The functions differ between mathematics libraries in the last bits of float64,
which rounding to float32 hides in all but about one value in 10^8.

**Rows.** A row out of `count` is drawn without bias (Lemire 2019, arXiv 1805.10941): take the first word with
`word * count mod 2^64 >= 2^64 mod count`; the row is `word * count div 2^64`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32, Int64
from engines.errors import UsageError

_START, _STEP, _ROW = range(3)


class Noise(Protocol):
    """Standard normals [B, *shape] addressed by sample and step; see `NoiseSource`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def start(self, samples: Int64) -> Float32: ...
    def step(self, step: int, samples: Int64) -> Float32: ...


@dataclass(frozen=True)
class NoiseSource:
    """Every random number of a run, addressed by sample and step.

    Attributes:
        seed: seed in [0, 2^64).
        shape: shape of one sample, without the batch dimension.
    """

    seed: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise UsageError("The seed is out of range.", found=self.seed, expected="0 to 2^64 - 1")

    def start(self, samples: Int64) -> Float32:
        """Return the standard normal `x_T` [B, *shape] of the samples with indices [B]."""
        return self._normals(samples, step=0, stream=_START)

    def step(self, step: int, samples: Int64) -> Float32:
        """Return the standard normal `z` [B, *shape] of step `step` for the samples with indices [B]."""
        return self._normals(samples, step=step, stream=_STEP)

    def row(self, samples: Int64, count: int) -> Int64:
        """Draw the rows [B] of the samples from a conditioning table of `count` rows, each equally likely."""
        if count < 1:
            raise UsageError("There is no conditioning row to choose from.", found=f"{count} rows", expected="at least 1")
        return np.array([_choose(self._words.at(n, step=0, stream=_ROW), count) for n in _checked_indices(samples)], dtype=np.int64)

    @cached_property
    def _words(self) -> _PhiloxWords:
        """Made once: with a cold cache after an engine's run, making one takes a third of the time of drawing the noise of one sample."""
        return _PhiloxWords(self.seed)

    def _normals(self, samples: Int64, step: int, stream: int) -> Float32:
        size = math.prod(self.shape)
        normals = np.empty((len(samples), size), dtype=np.float32)
        # One sample at a time, so that the temporaries stay in cache and no vector loop runs across two samples.
        for row, n in zip(normals, _checked_indices(samples), strict=True):
            _box_muller(self._words.at(n, step, stream).random_raw(size + size % 2), out=row)
        return normals.reshape(len(samples), *self.shape)


class _PhiloxWords:
    """Raw words at any address. It repositions one bit generator, because making one costs as much as hundreds of normals."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=seed)
        self._state = self._philox.state
        self._counter = self._state["state"]["counter"]

    def at(self, sample: int, step: int, stream: int) -> np.random.Philox:
        """Return the generator, positioned to draw block 1 of this address."""
        self._counter[:] = 0, sample, step, stream
        self._philox.state = self._state
        return self._philox


def _checked_indices(samples: Int64) -> list[int]:
    if np.any(samples < 0):
        raise UsageError("A sample index is out of range.", found=int(samples.min()), expected="0 to 2^63 - 1")
    indices: list[int] = samples.tolist()
    return indices


def _box_muller(words: NDArray[np.uint64], out: Float32) -> None:
    # 53 bits fit into int64, which converts to float64 faster than uint64.
    bits = (words >> np.uint64(11)).view(np.int64)
    u1, u2 = (bits[0::2] + 1) * 2.0**-53, bits[1::2] * 2.0**-53
    # cos and sin from the half angle: in float64, numpy has a vector loop for tan but not for cos and sin.
    t = np.tan(np.pi * u2)
    scale = np.sqrt(-2 * np.log(u1)) / (1 + t * t)
    out[0::2] = scale * (1 - t * t)
    out[1::2] = (scale * 2 * t)[: len(out) // 2]


def _choose(words: np.random.Philox, count: int) -> int:
    while True:
        row, remainder = divmod(words.random_raw() * count, 2**64)
        if remainder >= 2**64 % count:
            return row
