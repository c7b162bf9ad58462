"""TensorRT-RTX's run-time classes on host memory, checked against the installed package; networks are functions of numpy arrays.

Runs queue in the streams of `EmulatedCuda` and read and write its memory when they come to their turn.
"""

# ruff: noqa: N802  # the names are TensorRT's own

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tests.emulated_device.emulated_cuda import EmulatedCuda
from tests.emulated_device.signatures import Specced

Array: TypeAlias = NDArray[Any]

_TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}

ACTIVATION_BYTES = 100
"""Bytes of activations that a row takes."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: its shape is `rows` times the number of rows, followed by `shape`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int = 1

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32, rows: int = 1) -> Tensor:
        return cls(name, shape, np.dtype(dtype), rows)

    def at(self, rows: int) -> tuple[int, ...]:
        return (self.rows * rows, *self.shape)


@dataclass(frozen=True)
class EmulatedNetwork:
    """A network.

    Attributes:
        inputs, outputs: tensors, in the engine's order.
        compute: returns every output by name for all inputs by name.
        batches: fewest, usual and most rows.
        refittable: bytes of the constants that may take other values, by name.
        refitted: returns the network with other values, by name.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    compute: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    batches: tuple[int, int, int] = (1, 4, 8)
    refittable: Mapping[str, Stored] = field(default_factory=dict)
    refitted: Callable[[Mapping[str, bytes]], EmulatedNetwork] | None = None


@dataclass(frozen=True)
class Stored:
    """Type and size of a constant: the name of its `DataType`, the number of its values, and its bytes."""

    dtype: str
    size: int
    nbytes: int


@dataclass(frozen=True)
class EmulatedWeights:
    """Stands in for `Weights`, which points to values and does not hold them."""

    dtype: Any
    ptr: int
    size: int


@dataclass
class EmulatedTensorRt:
    """Stands in for the module, with its real enumerations and classes that compute.

    Attributes:
        networks: networks by the bytes of their serialized engine.
        read: reads a serialized engine that `networks` lacks; returns None if it is damaged.
        weights_bytes: bytes that the weights of an engine take on the device.
        refits: whether refitters take other weights.
    """

    real: Any
    cuda: EmulatedCuda
    networks: dict[bytes, EmulatedNetwork] = field(default_factory=dict)
    read: Callable[[bytes], EmulatedNetwork | None] = lambda _: None
    weights_bytes: int = 1000
    refits: bool = True
    _opened: list[weakref.ref[EmulatedEngine]] = field(default_factory=list)

    @property
    def engines(self) -> list[EmulatedEngine]:
        """Engines that are open, in the order in which they were opened."""
        return [engine for opened in self._opened if (engine := opened()) is not None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def Weights(self, dtype: Any, ptr: int, count: int) -> EmulatedWeights:
        return EmulatedWeights(dtype, ptr, count)

    def Refitter(self, engine: EmulatedEngine, logger: Any) -> EmulatedRefitter:
        assert isinstance(logger, self.real.ILogger)
        return EmulatedRefitter(engine)

    def Runtime(self, logger: Any) -> EmulatedRuntime:
        assert isinstance(logger, self.real.ILogger)
        return EmulatedRuntime(self)


class EmulatedRuntime(Specced):
    def __init__(self, trt: EmulatedTensorRt) -> None:
        super().__init__(trt.real.Runtime, defer_weights_loading=False)
        object.__setattr__(self, "trt", trt)

    def on_deserialize_cuda_engine(self, plan: bytes) -> EmulatedEngine | None:
        network = self.trt.networks.get(plan) or self.trt.read(plan)
        missing = not self.defer_weights_loading and self.trt.cuda.free_bytes < self.trt.weights_bytes
        if network is None or missing or not self.trt.cuda.called("deserialize_cuda_engine"):
            return None
        engine = EmulatedEngine(self.trt, network, plan, deferred=self.defer_weights_loading)
        self.trt._opened.append(weakref.ref(engine))
        return engine


class EmulatedEngine(Specced):
    """An engine. Its weights take room on the device while they are loaded."""

    weights_loaded: bool

    def __init__(self, trt: EmulatedTensorRt, network: EmulatedNetwork, plan: bytes, *, deferred: bool) -> None:
        tensors = {tensor.name: tensor for tensor in (*network.inputs, *network.outputs)}
        super().__init__(trt.real.ICudaEngine, num_io_tensors=len(tensors), weights_loaded=False)
        for name, value in {"trt": trt, "network": network, "built": network, "plan": plan, "tensors": tensors}.items():
            object.__setattr__(self, name, value)
        if not deferred:
            self._take(loaded=True)

    def spoil(self, value: float) -> None:
        """Let every output be a value from now on."""
        tensors, compute = self.network.outputs, self.network.compute
        spoiled = lambda feeds: {one.name: np.full_like(compute(feeds)[one.name], value) for one in tensors}  # noqa: E731
        object.__setattr__(self, "network", replace(self.network, compute=spoiled))

    def __del__(self) -> None:
        self._take(loaded=False)

    def _take(self, *, loaded: bool) -> None:
        if loaded != self.weights_loaded:
            self.weights_loaded = loaded
            self.trt.cuda.taken_bytes += self.trt.weights_bytes if loaded else -self.trt.weights_bytes

    def on_get_tensor_name(self, index: int) -> str:
        return str(list(self.tensors)[index])

    def on_get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if self.tensors[name] in self.network.inputs else self.trt.TensorIOMode.OUTPUT

    def on_get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.trt.DataType, _TYPES[self.tensors[name].dtype.name])

    def on_get_tensor_shape(self, name: str) -> Any:
        return self.trt.Dims([-1, *self.tensors[name].shape])

    def on_get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        assert profile == 0
        return [self.trt.Dims(self.tensors[name].at(rows)) for rows in self.network.batches]

    def on_get_engine_stat(self, stat: Any) -> int:
        assert stat == self.trt.EngineStat.TOTAL_WEIGHTS_SIZE
        return int(self.trt.weights_bytes)

    def on_create_runtime_config(self) -> EmulatedRuntimeConfig:
        return EmulatedRuntimeConfig(self.trt)

    def on_create_execution_context(self, how: Any) -> EmulatedContext | None:
        strategy = how.strategy if isinstance(how, EmulatedRuntimeConfig) else how
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return EmulatedContext(self) if self.trt.cuda.called("create_execution_context") else None

    def on_load_weights(self, plan: bytes) -> bool:
        fits = self.trt.cuda.free_bytes >= self.trt.weights_bytes
        if plan != self.plan or not fits or not self.trt.cuda.called("load_weights"):
            return False
        self._take(loaded=True)
        return True

    def on_unload_weights(self) -> bool:
        self._take(loaded=False)
        object.__setattr__(self, "network", self.built)  # the next load brings the weights of the build
        return bool(self.trt.cuda.called("unload_weights"))


class EmulatedRefitter(Specced):
    """Takes values of the constants that an engine was built refittable in, while its weights are on the device and no run waits."""

    def __init__(self, engine: EmulatedEngine) -> None:
        super().__init__(engine.trt.real.Refitter)
        for name, value in {"engine_": engine, "given": {}}.items():
            object.__setattr__(self, name, value)

    def on_get_weights_prototype(self, name: str) -> EmulatedWeights:
        stored, types = self.engine_.network.refittable.get(name), self.engine_.trt.DataType
        return EmulatedWeights(types.FLOAT, 0, 0) if stored is None else EmulatedWeights(getattr(types, stored.dtype), 0, stored.size)

    def on_set_named_weights(self, name: str, weights: EmulatedWeights) -> bool:
        stored = self.engine_.network.refittable.get(name)
        if stored is None or not self.engine_.trt.refits or (weights.dtype.name, weights.size) != (stored.dtype, stored.size):
            return False
        self.given[name] = ctypes.string_at(weights.ptr, stored.nbytes)
        return True

    def on_get_missing_weights(self) -> list[str]:
        return []

    def on_refit_cuda_engine(self) -> bool:
        engine = self.engine_
        assert engine.weights_loaded, "the weights are not on the device"
        assert not any(engine.trt.cuda.queues.values()), "a run may use the weights"
        if not engine.trt.cuda.called("refit_cuda_engine"):
            return False
        object.__setattr__(engine, "network", engine.network.refitted(self.given))
        return True


class EmulatedRuntimeConfig(Specced):
    def __init__(self, trt: EmulatedTensorRt) -> None:
        super().__init__(trt.real.IRuntimeConfig, dynamic_shapes_kernel_specialization_strategy=None)
        for name, value in {"trt": trt, "strategy": None}.items():
            object.__setattr__(self, name, value)

    def on_set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        object.__setattr__(self, "strategy", strategy)

    def on_create_runtime_cache(self) -> EmulatedRuntimeCache:
        return EmulatedRuntimeCache(self.trt)

    def on_set_runtime_cache(self, cache: Any) -> bool:
        assert isinstance(cache, EmulatedRuntimeCache)
        return True


class EmulatedRuntimeCache(Specced):
    def __init__(self, trt: EmulatedTensorRt) -> None:
        super().__init__(trt.real.IRuntimeCache)
        object.__setattr__(self, "content", b"")

    def on_deserialize(self, content: bytes) -> bool:
        object.__setattr__(self, "content", content)
        return True

    def on_serialize(self) -> bytes:
        return bytes(self.content) + b"+kernels"


class EmulatedContext(Specced):
    """Computes in its turn in the stream, with the addresses set at the time of the call. It must be alive then."""

    def __init__(self, engine: EmulatedEngine) -> None:
        super().__init__(engine.trt.real.IExecutionContext)
        own: dict[str, Any] = {"engine_": engine, "rows": None, "addresses": {}, "memory": (0, 0), "alive": [True]}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def __del__(self) -> None:
        self.alive[0] = False

    def on_set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine_.network.batches
        object.__setattr__(self, "rows", shape[0])
        return bool(shape[1:] == self.engine_.tensors[name].shape and least <= shape[0] <= most)

    def on_get_tensor_shape(self, name: str) -> Any:
        return self.engine_.trt.Dims(self.engine_.tensors[name].at(self.rows))

    def on_update_device_memory_size_for_shapes(self) -> int:
        return ACTIVATION_BYTES * int(self.rows)

    def on_set_device_memory(self, address: int, size: int) -> None:
        object.__setattr__(self, "memory", (address, size))

    def on_set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine_.tensors

    def on_execute_async_v3(self, stream: int) -> bool:
        engine, rows, addresses, (memory, size), alive = self.engine_, self.rows, dict(self.addresses), self.memory, self.alive
        cuda: EmulatedCuda = engine.trt.cuda
        if not cuda.called("execute_async_v3"):
            return False

        def work() -> None:
            assert alive[0], "the context was destroyed before its run"
            assert engine.weights_loaded, "the weights are not on the device"
            assert size >= ACTIVATION_BYTES * rows
            cuda.check_inside(memory, size, "device")
            arrays = {tensor.name: _at(cuda, addresses[tensor.name], tensor, rows) for tensor in engine.tensors.values()}
            found = engine.network.compute({tensor.name: arrays[tensor.name].copy() for tensor in engine.network.inputs})
            ctypes.memset(memory, 0xFF, size)
            for tensor in engine.network.outputs:
                arrays[tensor.name][...] = found[tensor.name]

        cuda.enqueue(stream, work)
        return True


def _at(cuda: EmulatedCuda, address: int, tensor: Tensor, rows: int) -> Array:
    """Return the array of a tensor on the device."""
    shape = tensor.at(rows)
    size = int(np.prod(shape)) * tensor.dtype.itemsize
    cuda.check_inside(address, size, "device")
    array: Array = np.ctypeslib.as_array((ctypes.c_byte * size).from_address(address)).view(tensor.dtype).reshape(shape)
    return array
