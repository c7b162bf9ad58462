"""CUDA on host memory: the functions of `cuda.bindings.runtime`, checked by name and argument count.

A stream runs nothing before it is waited for, as late as a device may: whoever reads or reuses a buffer too early computes with the wrong
content. Memory ends at a set size, copies must lie inside one block of the right kind, and the device can be lost at any call.
"""

# ruff: noqa: N802  # the names are CUDA's own

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from tests.emulated_device.signatures import argument_counts

Work: TypeAlias = Callable[[], object]

NAN_BYTE = 0xFF
"""New memory is full of this byte, which reads as NaN until something is written."""

FIRST_STREAM = 7

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")
"""Calls that wait for the device."""

UNSAFE_IN_CAPTURE = (*WAITS, "cudaMalloc", "cudaMallocHost", "cudaFree", "cudaFreeHost")
"""Calls that end a capture with an error."""


@dataclass(frozen=True)
class Block:
    """Memory that has not been freed yet."""

    buffer: Any
    nbytes: int
    kind: Literal["device", "pinned"]


class EmulatedCuda:
    """Stands in for `cuda.bindings.runtime`.

    Attributes:
        real: the real module.
        memory_bytes: size of the device's memory.
        taken_bytes: bytes of it that others than `cudaMalloc` took, such as the weights of engines.
        blocks: memory that has not been freed yet, by address.
        calls: names of the called functions, in order.
        capability: compute capability that the device reports.
        devices: number of devices.
        queues: work of each stream that has not run yet.
        starved: waits after which the device had nothing left to do, by their places in `calls`.
        lost: whether the device is lost; then every call fails.
    """

    def __init__(self, real: Any) -> None:
        self.real = real
        self.memory_bytes = 10**9
        self.taken_bytes = 0
        self.blocks: dict[int, Block] = {}
        self.calls: list[str] = []
        self.capability = (8, 9)
        self.devices = 1
        self.queues: dict[int, deque[Work]] = {}
        self.starved: list[int] = []
        self.lost = False
        self._losing: tuple[str, int] | None = None
        self._capturing: tuple[int, list[Work]] | None = None
        self._events: dict[int, int] = {}
        self._reached: set[int] = set()
        self._names = 10

    @property
    def used_bytes(self) -> int:
        """Bytes of the device's memory that are in use."""
        return self.taken_bytes + sum(block.nbytes for block in self.of_kind("device"))

    @property
    def free_bytes(self) -> int:
        return max(0, self.memory_bytes - self.used_bytes)

    def of_kind(self, kind: str) -> list[Block]:
        """Return the blocks on the device, or those of pinned memory."""
        return [block for block in self.blocks.values() if block.kind == kind]

    def lose(self, function: str, call: int = 1) -> None:
        """Lose the device at a call, counted from now, of a function of CUDA or TensorRT. That call fails, and all later ones."""
        self._losing = function, call

    def called(self, name: str) -> bool:
        """Note a call, and return whether the device is still there."""
        self.calls.append(name)
        if self._losing is not None and self._losing[0] == name:
            self._losing = name, self._losing[1] - 1
            self.lost = self.lost or self._losing[1] == 0
        if self.lost:
            self.queues = {stream: deque() for stream in self.queues}
        return not self.lost

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)  # fails for a name that does not exist
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        counts = argument_counts(found, name)
        implementation = getattr(type(self), f"on_{name}", None)
        assert implementation is not None, f"{name} is not emulated"

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert any(least <= len(arguments) <= most for least, most in counts), f"{name} takes {counts}, not {len(arguments)}"
            if not self.called(name):
                return (self.real.cudaError_t.cudaErrorLaunchFailure, None)
            assert self._capturing is None or name not in UNSAFE_IN_CAPTURE, f"{name} while a graph is captured"
            results = implementation(self, *arguments)
            if name in WAITS and not any(self.queues.values()):
                self.starved.append(len(self.calls) - 1)
            if isinstance(results, self.real.cudaError_t):
                return (results, None)
            return (self.real.cudaError_t.cudaSuccess, *results)

        return call

    def enqueue(self, stream: int, work: Work) -> None:
        """Queue the work of a stream, or record it while a graph is captured."""
        assert stream in self.queues, f"{stream} is no stream"
        if self._capturing is None:
            self.queues[stream].append(work)
        else:
            assert self._capturing[0] == stream, "another stream than the one that is captured"
            self._capturing[1].append(work)

    def run_queue(self, stream: int) -> None:
        """Run what a stream has queued, in order."""
        while self.queues[stream]:
            self.queues[stream].popleft()()

    def check_inside(self, address: int, nbytes: int, kind: Literal["device", "pinned"]) -> None:
        """Check that bytes lie in one block of a kind."""
        inside = (
            block.kind == kind and begin <= address and address + nbytes <= begin + block.nbytes for begin, block in self.blocks.items()
        )
        assert any(inside), f"{nbytes} bytes at {address:#x} are not in {kind} memory"

    def on_cudaGetDeviceCount(self) -> tuple[int]:
        return (self.devices,)

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
        return (self.free_bytes, self.memory_bytes)

    def on_cudaMalloc(self, size: int) -> Any:
        if size > self.free_bytes:
            return self.real.cudaError_t.cudaErrorMemoryAllocation
        return self._allocated(size, "device")

    def on_cudaMallocHost(self, size: int) -> Any:
        return self._allocated(size, "pinned")

    def _allocated(self, size: int, kind: Literal["device", "pinned"]) -> tuple[int]:
        buffer = (ctypes.c_byte * size)()
        ctypes.memset(buffer, NAN_BYTE, size)
        self.blocks[ctypes.addressof(buffer)] = Block(buffer, size, kind)
        return (ctypes.addressof(buffer),)

    def on_cudaFree(self, address: int) -> tuple[()]:
        self.on_cudaDeviceSynchronize()  # CUDA waits for the device before it frees
        assert self.blocks.pop(address).kind == "device"
        return ()

    def on_cudaFreeHost(self, address: int) -> tuple[()]:
        assert not any(self.queues.values()), "pinned memory was freed before the streams had finished"
        assert self.blocks.pop(address).kind == "pinned"
        return ()

    def on_cudaDeviceSynchronize(self) -> tuple[()]:
        for stream in self.queues:
            self.run_queue(stream)
        return ()

    def on_cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[()]:
        kinds = self.real.cudaMemcpyKind
        assert kind in (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost)
        device, host = (target, source) if kind == kinds.cudaMemcpyHostToDevice else (source, target)

        def copy() -> None:
            self.check_inside(device, size, "device")
            self.check_inside(host, size, "pinned")
            ctypes.memmove(target, source, size)

        self.enqueue(stream, copy)
        return ()

    def on_cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:
        assert flags == self.real.cudaStreamNonBlocking
        stream = FIRST_STREAM + len(self.queues)
        self.queues[stream] = deque()
        return (stream,)

    def on_cudaStreamDestroy(self, stream: int) -> tuple[()]:
        self.run_queue(stream)
        return ()

    def on_cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        self.run_queue(stream)
        return ()

    def on_cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[()]:
        assert isinstance(mode, self.real.cudaStreamCaptureMode)
        self._capturing = stream, []
        return ()

    def on_cudaStreamEndCapture(self, stream: int) -> tuple[Any]:
        assert self._capturing is not None
        assert self._capturing[0] == stream
        captured, self._capturing = self._capturing[1], None
        return (captured,)

    def on_cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any]:
        assert flags == 0
        return (list(graph),)

    def on_cudaGraphDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def on_cudaGraphExecDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def on_cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[()]:
        assert graph, "the graph is empty or was destroyed"
        for work in graph:
            self.enqueue(stream, work)
        return ()

    def on_cudaEventCreate(self) -> tuple[int]:
        self._names += 1
        return (self._names,)

    def on_cudaEventRecord(self, event: int, stream: int) -> tuple[()]:
        self._events[event] = stream
        self.enqueue(stream, lambda: self._reached.add(event))
        return ()

    def on_cudaEventSynchronize(self, event: int) -> tuple[()]:
        """Run what was queued before the event, and nothing else: a device may be that late."""
        while event not in self._reached:
            self.queues[self._events[event]].popleft()()
        return ()

    def on_cudaEventDestroy(self, event: int) -> tuple[()]:
        self._reached.discard(event)
        return ()

    def on_cudaEventElapsedTime(self, begin: int, end: int) -> tuple[float]:
        assert {begin, end} <= self._reached, "an event that was not waited for"
        return (1.5,)
