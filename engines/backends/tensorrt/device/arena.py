"""Device memory shared by the engines of a bank, which take turns and so need only one set of buffers."""

from __future__ import annotations

from engines.backends.tensorrt.device.cuda import Cuda, DeviceMemory
from engines.backends.tensorrt.device.residency import Residency

ACTIVATIONS = "activations"
"""Name of the block that holds the activations of every engine. The other blocks are named after inputs and outputs."""


class Arena:
    """Named blocks on the device, each as large as the largest size ever requested for it.

    Attributes:
        generation: increases when a block moves; callers that hold an address must then get it again.
        stream: stream that all engines run on.
        residency: tracks which engines' weights are on the device.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.residency = Residency(cuda.free_bytes)
        self.generation = 0
        self._blocks: dict[str, DeviceMemory] = {}

    def reserve(self, name: str, nbytes: int) -> None:
        """Make a block at least `nbytes` large; if it has to grow, its content is lost."""
        block = self._blocks.pop(name, None)
        if block is None or block.nbytes < nbytes:
            self.stream.synchronize()
            del block  # free it before allocating its successor, or both would be on the device
            block = self.cuda.device_memory(nbytes)
            self.generation += 1
        self._blocks[name] = block

    def address(self, name: str) -> int:
        return self._blocks[name].address

    def nbytes(self, name: str) -> int:
        return self._blocks[name].nbytes

    @property
    def total_bytes(self) -> int:
        """Total bytes of all blocks."""
        return sum(block.nbytes for block in self._blocks.values())
