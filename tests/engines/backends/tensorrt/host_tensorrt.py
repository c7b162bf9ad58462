"""A fake of TensorRT-RTX's run-time classes on host memory, checked against the installed package; its networks are numpy functions."""

# ruff: noqa: N802  # the names are CUDA's and TensorRT's own

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engines.backends.tensorrt.host_cuda import HostCuda
from tests.engines.backends.tensorrt.signatures import Specced

Array = NDArray[Any]
SHAPES = {"sample": (1, 8, 8), "timestep": (), "class_labels": (), "out": (1, 8, 8)}
DTYPES = {"kept": "FLOAT", "sample": "FLOAT", "timestep": "FLOAT", "class_labels": "INT64", "out": "FLOAT", "shown.inside": "HALF"}
KEPT = "kept"
"""Features that the engine `full` returns and the engine `reuse` takes."""
OWN = {b"shown": ("shown.inside",), b"full": (KEPT,)}
"""Outputs of an engine besides `out`."""

INSIDE = "shown.inside"
"""A second output in half precision, [2 * batch, 4]: the first axis of a tensor inside a network need not be the batch."""


def _shape(name: str) -> tuple[int, ...]:
    """Shape of a tensor without its first axis."""
    return {KEPT: SHAPES["out"], INSIDE: (4,)}.get(name) or SHAPES[name]


NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
BATCHES = (1, 4, 8)


def at(address: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return the array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array: Array = np.ctypeslib.as_array((ctypes.c_byte * size).from_address(address)).view(dtype).reshape(shape)
    return array


class HostTensorRt:
    """Stands in for the module, with its real enumerations and fake classes that compute.

    `networks` maps the bytes of a serialized engine to its network. The engine `shown` also has the output `INSIDE`. Features of
    the engine `full` are its own output.
    """

    def __init__(self, real: Any, cuda: HostCuda, networks: dict[bytes, Callable[..., Array]]) -> None:
        self.real = real
        self.cuda = cuda
        self.networks = networks
        self.engines: list[HostEngine] = []
        self.weights_bytes = 1000

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def Runtime(self, logger: Any) -> HostRuntime:
        assert isinstance(logger, self.real.ILogger)
        return HostRuntime(self)


class HostRuntime(Specced):
    def __init__(self, trt: HostTensorRt) -> None:
        super().__init__(trt.real.Runtime, defer_weights_loading=False)
        object.__setattr__(self, "trt", trt)

    def on_deserialize_cuda_engine(self, plan: bytes) -> HostEngine | None:
        if plan not in self.trt.networks:
            return None
        engine = HostEngine(self.trt, self.trt.networks[plan], plan, deferred=self.defer_weights_loading)
        self.trt.engines.append(engine)
        return engine


class HostEngine(Specced):
    def __init__(self, trt: HostTensorRt, network: Callable[..., Array], plan: bytes, *, deferred: bool) -> None:
        names = [*([KEPT] if plan == b"reuse" else []), *SHAPES, *OWN.get(plan, ())]
        super().__init__(trt.real.ICudaEngine, num_io_tensors=len(names), weights_loaded=not deferred)
        own: dict[str, Any] = {"trt": trt, "network": network, "plan": plan, "contexts": [], "names": names}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def on_get_tensor_name(self, index: int) -> str:
        return str(self.names[index])

    def on_get_tensor_mode(self, name: str) -> Any:
        is_output = name in ("out", *OWN.get(self.plan, ()))
        return self.trt.TensorIOMode.OUTPUT if is_output else self.trt.TensorIOMode.INPUT

    def on_get_tensor_dtype(self, name: str) -> Any:
        return getattr(self.trt.DataType, DTYPES[name])

    def on_get_tensor_shape(self, name: str) -> Any:
        return self.trt.Dims([-1, *_shape(name)])

    def on_get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        assert profile == 0
        return [self.trt.Dims([rows, *_shape(name)]) for rows in BATCHES]

    def on_get_engine_stat(self, stat: Any) -> int:
        assert stat == self.trt.EngineStat.TOTAL_WEIGHTS_SIZE
        return int(self.trt.weights_bytes)

    def on_create_runtime_config(self) -> HostRuntimeConfig:
        return HostRuntimeConfig(self.trt)

    def on_create_execution_context(self, how: Any) -> HostContext:
        strategy = how.strategy if isinstance(how, HostRuntimeConfig) else how
        assert strategy == self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = HostContext(self)
        self.contexts.append(context)
        return context

    def on_load_weights(self, plan: bytes) -> bool:
        self.weights_loaded = plan == self.plan
        self.trt.cuda.free -= self.trt.weights_bytes
        return bool(self.weights_loaded)

    def on_unload_weights(self) -> bool:
        self.weights_loaded = False
        self.trt.cuda.free += self.trt.weights_bytes
        return True


class HostRuntimeConfig(Specced):
    def __init__(self, trt: HostTensorRt) -> None:
        super().__init__(trt.real.IRuntimeConfig, dynamic_shapes_kernel_specialization_strategy=None)
        for name, value in {"trt": trt, "strategy": None}.items():
            object.__setattr__(self, name, value)

    def on_set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        object.__setattr__(self, "strategy", strategy)

    def on_create_runtime_cache(self) -> HostRuntimeCache:
        return HostRuntimeCache(self.trt)

    def on_set_runtime_cache(self, cache: Any) -> bool:
        assert isinstance(cache, HostRuntimeCache)
        return True


class HostRuntimeCache(Specced):
    def __init__(self, trt: HostTensorRt) -> None:
        super().__init__(trt.real.IRuntimeCache)
        object.__setattr__(self, "content", b"")

    def on_deserialize(self, content: bytes) -> bool:
        object.__setattr__(self, "content", content)
        return True

    def on_serialize(self) -> bytes:
        return bytes(self.content) + b"+kernels"


class HostContext(Specced):
    """Computes immediately or as part of a captured graph, with the addresses set at the time of the call."""

    def __init__(self, engine: HostEngine) -> None:
        super().__init__(engine.trt.real.IExecutionContext)
        own: dict[str, Any] = {"engine_": engine, "rows": None, "addresses": {}, "memory": (0, 0)}
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def on_set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        object.__setattr__(self, "rows", shape[0])
        return shape[1:] == _shape(name) and BATCHES[0] <= shape[0] <= BATCHES[2]

    def on_get_tensor_shape(self, name: str) -> Any:
        rows = int(self.rows)
        return self.engine_.trt.Dims([2 * rows, 4] if name == INSIDE else [rows, *_shape(name)])

    def on_update_device_memory_size_for_shapes(self) -> int:
        return 100 * int(self.rows)

    def on_set_device_memory(self, address: int, size: int) -> None:
        object.__setattr__(self, "memory", (address, size))

    def on_set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine_.names

    def on_execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        addresses, rows, (memory, size) = dict(self.addresses), self.rows, self.memory

        def work() -> None:
            live = self.engine_.trt.cuda.live
            assert self.engine_.weights_loaded, "the weights are not on the device"
            assert size >= 100 * rows
            assert {memory, *addresses.values()} <= live.keys(), "an address was freed"
            taken = ["sample", "timestep", "class_labels", *([KEPT] if self.engine_.plan == b"reuse" else [])]
            inputs = [at(addresses[name], (rows, *_shape(name)), NUMPY[DTYPES[name]]) for name in taken]
            at(addresses["out"], (rows, *SHAPES["out"]), np.float32)[:] = self.engine_.network(*inputs)
            if self.engine_.plan == b"full":
                at(addresses[KEPT], (rows, *SHAPES["out"]), np.float32)[:] = inputs[0]
            if INSIDE in addresses:
                at(addresses[INSIDE], (2 * rows, 4), np.float16)[:] = inputs[0].reshape(2 * rows, -1)[:, :4]

        self.engine_.trt.cuda.enqueue(work)
        return True
