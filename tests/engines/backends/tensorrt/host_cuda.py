"""A fake of CUDA on host memory: the functions of `cuda.bindings.runtime`, checked by name and argument count.

A stream runs nothing before it is waited for, as late as a device may: whoever reuses a buffer too early computes with the new content.
"""

# ruff: noqa: N802, N815  # the names are CUDA's and TensorRT's own

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.engines.backends.tensorrt.signatures import argument_counts


class HostCuda:
    """Stands in for `cuda.bindings.runtime`.

    Attributes:
        real: the real module.
        live: memory not yet freed, by address.
        calls: names of the called functions, in order.
        free: bytes that the device reports as free.
        capability: compute capability that the device reports.
        failing: names of functions that report out of memory.
        queued: work of the stream that has not run yet.
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.live: dict[int, Any] = {}
        self.calls: list[str] = []
        self.free = 10**9
        self.capability = (8, 9)
        self.failing: set[str] = set()
        self.queued: list[Callable[[], object]] = []
        self.capturing: list[Callable[[], object]] | None = None
        self.events = 10
        self.reached: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)  # fails for a name that does not exist
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        counts = argument_counts(found, name)
        implementation = getattr(type(self), f"on_{name}", None)
        assert implementation is not None, f"the fake does not implement {name}"

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert any(least <= len(arguments) <= most for least, most in counts), f"{name} takes {counts}, not {len(arguments)}"
            self.calls.append(name)
            if name in self.failing:
                return (self.real.cudaError_t.cudaErrorMemoryAllocation, None)
            return (self.real.cudaError_t.cudaSuccess, *implementation(self, *arguments))

        return call

    def enqueue(self, work: Callable[[], object]) -> None:
        """Queue the work of a stream, or record it while a graph is captured."""
        (self.queued if self.capturing is None else self.capturing).append(work)

    def run_queue(self) -> None:
        """Run what the stream has queued, in order."""
        while self.queued:
            self.queued.pop(0)()

    def on_cudaGetDeviceCount(self) -> tuple[int]:
        return (1,)

    def on_cudaGetDevice(self) -> tuple[int]:
        return (0,)

    def on_cudaDriverGetVersion(self) -> tuple[int]:
        return (13000,)

    def on_cudaDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int]:
        del device
        major, minor = self.capability
        return (major if attribute == self.real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor else minor,)

    def on_cudaGetDeviceProperties(self, device: int) -> tuple[Any]:
        del device
        assert hasattr(self.real.cudaDeviceProp, "name")
        return (SimpleNamespace(name=b"Host memory\0\0"),)

    def on_cudaMemGetInfo(self) -> tuple[int, int]:
        return (self.free, 10**10)

    def on_cudaMalloc(self, size: int) -> tuple[int]:
        block = (ctypes.c_byte * size)()
        ctypes.memset(block, 0xFF, size)  # reads as NaN until something is written
        self.live[ctypes.addressof(block)] = block
        return (ctypes.addressof(block),)

    on_cudaMallocHost = on_cudaMalloc

    def on_cudaFree(self, address: int) -> tuple[()]:
        self.run_queue()  # CUDA waits for the device before it frees
        del self.live[address]
        return ()

    def on_cudaFreeHost(self, address: int) -> tuple[()]:
        assert not self.queued, "pinned memory was freed before the stream had finished"
        del self.live[address]
        return ()

    def on_cudaDeviceSynchronize(self) -> tuple[()]:
        self.run_queue()
        return ()

    def on_cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> tuple[()]:
        assert kind in (self.real.cudaMemcpyKind.cudaMemcpyHostToDevice, self.real.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        assert stream == 7
        self.enqueue(lambda: ctypes.memmove(target, source, size))
        return ()

    def on_cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == self.real.cudaStreamNonBlocking
        return (7,)

    def on_cudaStreamDestroy(self, stream: int) -> tuple[()]:
        del stream
        return ()

    def on_cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        assert self.capturing is None, "a stream cannot be waited for while it is captured"
        del stream
        self.run_queue()
        return ()

    def on_cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[()]:
        del stream
        assert isinstance(mode, self.real.cudaStreamCaptureMode)
        self.capturing = []
        return ()

    def on_cudaStreamEndCapture(self, stream: int) -> tuple[Any]:
        del stream
        captured, self.capturing = self.capturing, None
        return (captured,)

    def on_cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any]:
        assert flags == 0
        return (list(graph),)

    def on_cudaGraphDestroy(self, graph: Any) -> tuple[()]:
        del graph
        return ()

    def on_cudaGraphExecDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def on_cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[()]:
        assert graph, "the graph is empty or was destroyed"
        del stream
        self.queued.extend(graph)
        return ()

    def on_cudaEventCreate(self) -> tuple[int]:
        self.events += 1
        return (self.events,)

    def on_cudaEventRecord(self, event: int, stream: int) -> tuple[()]:
        del stream
        self.enqueue(lambda: self.reached.add(event))
        return ()

    def on_cudaEventSynchronize(self, event: int) -> tuple[()]:
        """Run what was queued before the event, and nothing else: a device may be that late."""
        while event not in self.reached:
            self.queued.pop(0)()
        return ()

    def on_cudaEventDestroy(self, event: int) -> tuple[()]:
        self.reached.discard(event)
        return ()

    def on_cudaEventElapsedTime(self, begin: int, end: int) -> tuple[float]:
        del begin, end
        return (1.5,)
