"""The parts of CUDA that sampling needs: memory, streams, events, graphs. Error codes raise PtqdError; objects own their memory."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.errors import DeviceLostError, MissingBackendError, PtqdError
from engines.host.room import size_text

OUT_OF_MEMORY = 2
"""Status of too little memory, in the runtime and in the driver."""

LOST = frozenset((214, 220, 226, 700, 702, 710, *range(714, 720), 721, 999))
"""Statuses, of the runtime and of the driver, after which every call fails until the process ends: a kernel or the device failed."""


class Cuda:
    """The CUDA runtime on the current device.

    Raises:
        MissingBackendError: cuda-bindings is not installed, or there is no device.
    """

    def __init__(self) -> None:
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise MissingBackendError(
                "cuda-bindings is not installed.", found=str(error), mend="pip install 'ptqd-export[gpu]' or 'ptqd-export[rtx]'"
            ) from error
        status, count = self._runtime.cudaGetDeviceCount()
        if status != 0 or not count:
            raise MissingBackendError(
                "There is no CUDA device.", found=_name(status) if status != 0 else "0 devices", mend="run on a machine with an NVIDIA GPU"
            )

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime; return its result, a tuple of several results, or None.

        Raises:
            PtqdError: the function reports an error.
        """
        status, *results = getattr(self._runtime, function)(*arguments)
        if status != 0:
            raise cuda_error(function, status)
        return tuple(results) if len(results) > 1 else next(iter(results), None)

    def release(self, function: str, *arguments: Any) -> None:
        """Call a function that frees something. Its errors are those of earlier calls, and the memory of a lost device is lost with it."""
        getattr(self._runtime, function)(*arguments)

    def check_alive(self) -> None:
        """Raise DeviceLostError if the device is lost: libraries say only that they failed."""
        self.free_bytes()

    def compute_capability(self) -> str:
        """Return the device's compute capability, such as `8.9`."""
        device = self.call("cudaGetDevice")
        attribute = self._runtime.cudaDeviceAttr
        major, minor = (
            self.call("cudaDeviceGetAttribute", which, device)
            for which in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        )
        return f"{major}.{minor}"

    def driver_version(self) -> str:
        """Return the newest CUDA version that the driver supports, such as `13000`."""
        return str(self.call("cudaDriverGetVersion"))

    def device_name(self) -> str:
        name: bytes = self.call("cudaGetDeviceProperties", self.call("cudaGetDevice")).name
        return name.split(b"\0")[0].decode()

    def free_bytes(self) -> int:
        """Return the free memory of the device in bytes."""
        free: int = self.call("cudaMemGetInfo")[0]
        return free

    def device_memory(self, nbytes: int) -> DeviceMemory:
        """Allocate memory on the device.

        Raises:
            PtqdError: the device has too little memory.
        """
        return DeviceMemory(self, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in pinned host memory, which the device can copy from and to directly.

        It is freed with its last view, once the device has finished: a run that failed may have left copies in a stream.
        """
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        address = int(self.call("cudaMallocHost", max(size, 1)))
        block = (ctypes.c_byte * size).from_address(address)
        weakref.finalize(block, self._free_pinned, address)
        array: NDArray[Any] = np.ctypeslib.as_array(block).view(dtype).reshape(shape)
        return array

    def _free_pinned(self, address: int) -> None:
        self.release("cudaDeviceSynchronize")
        self.release("cudaFreeHost", address)

    def stream(self) -> Stream:
        return Stream(self)


class DeviceMemory:
    """Bytes on the device, freed with this object."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        free = cuda.free_bytes()
        if nbytes > free:
            raise _too_little(f"{size_text(free)} free", size_text(nbytes))
        self.nbytes = nbytes
        self.address = int(cuda.call("cudaMalloc", max(nbytes, 1)))
        weakref.finalize(self, cuda.release, "cudaFree", self.address)


class Stream:
    """A queue of work that the device runs in order."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        kinds = cuda._runtime.cudaMemcpyKind
        self._to_device, self._to_host = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        self._capture_mode = cuda._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._stream = cuda.call("cudaStreamCreateWithFlags", cuda._runtime.cudaStreamNonBlocking)
        self.handle = int(self._stream)
        weakref.finalize(self, cuda.release, "cudaStreamDestroy", self._stream)

    def upload(self, source: NDArray[Any], address: int) -> None:
        """Enqueue a copy of a contiguous array to the device; the array must not change until `synchronize`, or until a later event."""
        self._cuda.call("cudaMemcpyAsync", address, source.ctypes.data, source.nbytes, self._to_device, self._stream)

    def download(self, address: int, target: NDArray[Any]) -> None:
        """Enqueue a copy from the device into a contiguous array, which is complete after `synchronize`."""
        self._cuda.call("cudaMemcpyAsync", target.ctypes.data, address, target.nbytes, self._to_host, self._stream)

    def synchronize(self) -> None:
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def drain(self) -> None:
        """Wait for the device before something that it may still use is destroyed; see `Cuda.release`."""
        self._cuda.release("cudaStreamSynchronize", self._stream)

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Graph]]:
        """Capture what the block enqueues as a graph instead of running it; the yielded list contains the graph after the block."""
        captured: list[Graph] = []
        self._cuda.call("cudaStreamBeginCapture", self._stream, self._capture_mode)
        try:
            yield captured
        except BaseException:
            self._cuda.release("cudaStreamEndCapture", self._stream)
            raise
        graph = self._cuda.call("cudaStreamEndCapture", self._stream)
        captured.append(Graph(self._cuda, graph))

    def launch(self, graph: Graph) -> None:
        self._cuda.call("cudaGraphLaunch", graph.executable, self._stream)

    def event(self) -> Any:
        """Record an event at this point of the stream; see `milliseconds` and `wait`."""
        event = self._cuda.call("cudaEventCreate")
        self._cuda.call("cudaEventRecord", event, self._stream)
        return event

    def wait(self, event: Any) -> None:
        """Wait until everything before an event has been done, and destroy the event. What was enqueued later goes on."""
        self._cuda.call("cudaEventSynchronize", event)
        self._cuda.call("cudaEventDestroy", event)

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Return the device time between two events in milliseconds, and destroy the events."""
        self._cuda.call("cudaEventSynchronize", end)
        elapsed: float = self._cuda.call("cudaEventElapsedTime", begin, end)
        for event in (begin, end):
            self._cuda.call("cudaEventDestroy", event)
        return elapsed


class Graph:
    """A captured CUDA graph, ready to launch; destroyed with this object."""

    def __init__(self, cuda: Cuda, graph: Any) -> None:
        self.executable = cuda.call("cudaGraphInstantiate", graph, 0)
        cuda.call("cudaGraphDestroy", graph)
        weakref.finalize(self, cuda.release, "cudaGraphExecDestroy", self.executable)


def cuda_error(function: str, status: Any) -> PtqdError:
    """Return the error of a status of the runtime or the driver."""
    found = f"{function}: {_name(status)}"
    if int(status) in LOST:
        return DeviceLostError(
            "The GPU failed during the run.",
            found=found,
            mend="run again: a new process may find it working. If it fails again, look into the driver's log (`dmesg`, lines with Xid)",
        )
    if int(status) == OUT_OF_MEMORY:
        return _too_little(found)
    return PtqdError(
        "CUDA reports an error.",
        found=found,
        mend="check whether another process uses the device, and whether the driver matches the version of cuda-bindings",
    )


def _too_little(found: str, expected: str | None = None) -> PtqdError:
    return PtqdError(
        "The GPU has too little free memory.",
        found=found,
        expected=expected,
        mend="lower the batch size, end other processes that use the device, or use precisions with smaller weights",
    )


def _name(status: Any) -> str:
    """Format a status, such as `cudaErrorMemoryAllocation (2)`."""
    return f"{status.name} ({int(status)})"
