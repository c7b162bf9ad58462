"""Device memory that the engines of a bank share: they run in turn, so that one set of buffers does for all of them."""

from __future__ import annotations

from engines.backends.tensorrt.device.cuda import Cuda, DeviceMemory
from engines.backends.tensorrt.device.residency import Residency

ACTIVATIONS = "activations"
"""Name of the block that every engine computes in. The others bear the names of inputs and outputs."""


class Arena:
    """Named blocks on the device, each as large as the largest that was ever asked for.

    Attributes:
        generation: grows when a block has moved; whoever holds an address must then ask for it again.
        stream: on which all of them run.
        residency: whose weights are on the device.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.stream = cuda.stream()
        self.residency = Residency(cuda.free_bytes)
        self.generation = 0
        self._blocks: dict[str, DeviceMemory] = {}

    def reserve(self, name: str, nbytes: int) -> None:
        """Have at least so many bytes in a block; its content is lost where it must grow."""
        block = self._blocks.pop(name, None)
        if block is None or block.nbytes < nbytes:
            self.stream.synchronize()
            del block  # before its successor, or both would be on the device
            block = self.cuda.device_memory(nbytes)
            self.generation += 1
        self._blocks[name] = block

    def address(self, name: str) -> int:
        return self._blocks[name].address

    def nbytes(self, name: str) -> int:
        return self._blocks[name].nbytes

    @property
    def total_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(block.nbytes for block in self._blocks.values())
