"""Memory on the device and pinned memory, shared by the engines of a bank: they take turns, and so need only one set of buffers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.backends.tensorrt.device.cuda import Cuda, DeviceMemory
from engines.backends.tensorrt.device.residency import Weights, residency
from engines.errors import PtqdError

ACTIVATIONS = "activations"
"""Name of the block that holds the activations of every engine. The other blocks are named after inputs and outputs."""


class Arena:
    """Named blocks on the device, each as large as the largest size ever requested for it, and named pinned arrays.

    Attributes:
        generation: increases when a block moves; callers that hold an address must then get it again.
        stream: stream that all engines run on.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.generation = 0
        self._blocks: dict[str, DeviceMemory] = {}
        self._pinned: dict[str, NDArray[Any]] = {}

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Make blocks at least as large as these numbers of bytes. Those that have to grow lose their content.

        Raises:
            PtqdError: the device has too little memory, even without any weights. The blocks then have their old sizes.
        """
        grown = {name: nbytes for name, nbytes in sizes.items() if name not in self._blocks or self._blocks[name].nbytes < nbytes}
        if not grown:
            return
        self.stream.synchronize()
        self.generation += 1
        had = {name: self._blocks.pop(name).nbytes for name in grown if name in self._blocks}  # free them before their successors come
        try:
            self._allocate(grown)
        except PtqdError:
            for name in grown:
                self._blocks.pop(name, None)
            self._allocate(had)  # smaller batches go on
            raise

    def _allocate(self, sizes: Mapping[str, int]) -> None:
        for name, nbytes in sizes.items():
            residency().make_room(nbytes, self.cuda.free_bytes)
            self._blocks[name] = self.cuda.device_memory(nbytes)

    def pinned(self, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return the pinned array of a name; one of another shape or type takes its place once the device has finished."""
        found = self._pinned.get(name)
        if found is None or (found.shape, found.dtype) != (shape, np.dtype(dtype)):
            found = self._pinned[name] = self.cuda.pinned(shape, dtype)
        return found

    def require(self, weights: Weights) -> None:
        """Make sure that the weights of an engine are on the device; see `Residency.require`."""
        residency().require(weights, self.cuda.free_bytes)

    def address(self, name: str) -> int:
        return self._blocks[name].address

    def nbytes(self, name: str) -> int:
        return self._blocks[name].nbytes

    @property
    def total_bytes(self) -> int:
        """Total bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks.values())
