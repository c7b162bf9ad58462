"""Wrap a TensorRT engine as an `Engine`: buffers and activation memory from the arena, and one CUDA graph per batch size."""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.backends.base import KEPT, Engine, TensorSpec
from engines.backends.tensorrt.device.arena import ACTIVATIONS, Arena
from engines.backends.tensorrt.device.cuda import Graph
from engines.backends.tensorrt.device.residency import does_not_fit
from engines.backends.tensorrt.flavour import Flavour
from engines.errors import PtqdError, UsageError
from engines.host.files import replacing
from engines.host.locks import locked

BATCH_SIZES = 8
"""Batch sizes whose context, graph and pinned arrays an engine keeps."""


class RefitError(PtqdError):
    """An open engine does not take other weights."""


@dataclass(frozen=True)
class OpenOptions:
    """How to open an engine.

    Attributes:
        cuda_graphs: whether to launch a captured graph instead of the engine's kernels one by one.
        runtime_cache: file that caches compiled kernels, for flavours that compile when they open an engine; None compiles every time.
    """

    cuda_graphs: bool = True
    runtime_cache: Path | None = None


class TensorRtEngine(Engine):
    """One serialized engine on the device. The network's own output is the engine's first output. Features to keep are another; they stay
    in their buffer of the arena, where the engine that takes them finds them.

    Args:
        path: path of the serialized engine.
        flavour: flavour that built the engine.
        arena: buffers shared with the other engines of the bank.
        options: see `OpenOptions`.
        constants: values that the engine's constants of these names take; it was built refittable in them. Packed integers as bytes.

    Raises:
        MissingBackendError: the flavour is not installed.
        RefitError: TensorRT does not take the constants.
        PtqdError: TensorRT refuses the engine, or its weights do not fit on the device.
    """

    def __init__(
        self,
        path: Path,
        flavour: Flavour,
        arena: Arena,
        options: OpenOptions | None = None,
        constants: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        self._trt = flavour.load()
        self._flavour = flavour
        self.arena = arena
        self._options = options or OpenOptions()
        self._plan = path.read_bytes()
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)
        label = f"{path.stem} on {flavour.name}"
        self._engine = self._open(label)
        inputs, outputs = self._specs(self._trt.TensorIOMode.INPUT), self._specs(self._trt.TensorIOMode.OUTPUT)
        self.outputs = outputs
        super().__init__(label, inputs, outputs[0], next((spec for spec in outputs[1:] if spec.name == KEPT), None))
        self._config = self._runtime_config() if flavour.runtime_cache else None
        self._bound: OrderedDict[int, _Bound] = OrderedDict()
        self._constants = constants
        if flavour.deferred_weights:
            return
        self._refit()
        self._plan, self._constants = b"", {}  # the device keeps the weights from now on

    def _open(self, label: str) -> Any:
        if self._flavour.deferred_weights:
            self._runtime.defer_weights_loading = True
        else:
            missing = len(self._plan) - self.arena.cuda.free_bytes()
            if missing > 0:
                raise does_not_fit(label, len(self._plan), missing)
        engine = self._runtime.deserialize_cuda_engine(self._plan)
        if engine is None:
            self.arena.cuda.check_alive()
            raise PtqdError(
                f"TensorRT refuses the engine {label}.",
                found="an engine built for another device, version or driver, or a damaged file",
                mend="rebuild it on this machine with `ptqd-export engines BUNDLE`",
            )
        return engine

    def _specs(self, mode: Any) -> tuple[TensorSpec, ...]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        return tuple(self._spec(name) for name in names if self._engine.get_tensor_mode(name) == mode)

    def _spec(self, name: str) -> TensorSpec:
        dtype = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return TensorSpec(name, dtype, tuple(self._engine.get_tensor_shape(name))[1:])

    def _runtime_config(self) -> Any:
        """Return a configuration through which all contexts of this engine share its compiled kernels."""
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # A captured graph keeps the kernels in use at capture, so those specialized for its shapes must be compiled before.
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache = config.create_runtime_cache()
        path = self._options.runtime_cache
        if path is not None and path.exists():
            with locked(path):
                self._cache.deserialize(path.read_bytes())  # entries that it refuses are compiled again
        config.set_runtime_cache(self._cache)
        return config

    def save_runtime_cache(self) -> None:
        """Save the compiled kernels. If two processes save, the later one wins; the kernels of the other are compiled again."""
        path = self._options.runtime_cache
        if path is None or self._config is None:
            return
        with locked(path), replacing(path) as temporary:
            temporary.write_bytes(bytes(self._cache.serialize()))

    # Weights that `Residency` can load and unload

    @cached_property
    def weights_bytes(self) -> int:
        """Bytes that the weights take on the device."""
        nbytes: int = self._engine.get_engine_stat(self._trt.EngineStat.TOTAL_WEIGHTS_SIZE)
        return nbytes

    def load_weights(self) -> None:
        if not self._engine.load_weights(self._plan):
            self.arena.cuda.check_alive()
            raise PtqdError(f"TensorRT cannot load the weights of {self.label}.", mend="end other processes that use the device")
        self._refit()

    def _refit(self) -> None:
        """Give the weights on the device the values of `constants`; loading brings back those that the engine was built with."""
        if not self._constants:
            return
        self.arena.stream.synchronize()
        refitter = self._trt.Refitter(self._engine, self._logger)
        for name, value in self._constants.items():
            own = refitter.get_weights_prototype(name)
            stored = -(-own.size // 2) if own.dtype == self._trt.DataType.INT4 else own.size
            if value.size != stored or not refitter.set_named_weights(name, self._trt.Weights(own.dtype, value.ctypes.data, own.size)):
                raise self._not_refitted(name)
        missing = refitter.get_missing_weights()
        if missing or not refitter.refit_cuda_engine():
            raise self._not_refitted(", ".join(missing[:3]) or "all of them")

    def _not_refitted(self, found: str) -> RefitError:
        self.arena.cuda.check_alive()
        return RefitError(f"TensorRT cannot refit {self.label}.", found=found, mend="build an engine of the changed graph")

    def unload_weights(self) -> None:
        self.arena.stream.synchronize()
        for bound in self._bound.values():
            bound.forget_graph()  # the graph contains addresses of the weights
        self._engine.unload_weights()

    # Runs

    @property
    def max_rows(self) -> int:
        """Maximum rows per call."""
        rows: int = self._engine.get_tensor_profile_shape(self.inputs[0].name, 0)[2][0]
        return rows

    def prepare(self, rows: int) -> None:
        """Allocate the buffers for calls with `rows` rows, so that no later call allocates.

        The buffers of the `BATCH_SIZES` sizes prepared last are kept: a server that sees every size would otherwise fill the memory.

        Raises:
            UsageError: the engine was built for other batch sizes.
        """
        if rows in self._bound:
            self._bound.move_to_end(rows)
            return
        least, _, most = (shape[0] for shape in self._engine.get_tensor_profile_shape(self.inputs[0].name, 0))
        if not least <= rows <= most:
            raise UsageError(
                f"{self.label} was not built for this batch size.",
                found=f"{rows} rows per network call (guidance takes two rows per sample)",
                expected=f"{least} to {most}",
                mend="sample with another --batch-size, or build the bundle with another target.batch",
            )
        if len(self._bound) == BATCH_SIZES:
            self._bound.popitem(last=False)
        self._bound[rows] = _Bound(self, rows)

    def create_context(self) -> Any:
        how = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED if self._config is None else self._config
        return self.accepted(self._engine.create_execution_context(how), "create a context")

    def accepted(self, result: Any, what: str) -> Any:
        """Return the result of a call to TensorRT, which is None or False if it fails.

        Raises:
            DeviceLostError: the device is lost.
            PtqdError: TensorRT refuses `what`.
        """
        if result is not None and result is not False:
            return result
        self.arena.cuda.check_alive()
        raise PtqdError(
            f"TensorRT refuses to {what}.",
            found=f"{self.label}, with {self.arena.cuda.free_bytes()} bytes free on the device",
            mend="see TensorRT's messages above; if memory is short, lower the batch size",
        )

    def upload(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> None:
        """Copy inputs to their device buffers; earlier copies must have finished."""
        staging = self._bound[rows].staging
        for name, value in feeds.items():
            staging[name][:] = value
            self.arena.stream.upload(staging[name], self.arena.address(name))

    def enqueue(self, rows: int) -> None:
        """Enqueue a run on the contents of the input buffers; call `prepare` first."""
        if self._flavour.deferred_weights:
            self.arena.require(self)
        self._bound[rows].enqueue()

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        found = self._outputs(feeds, (self.output,) if self.kept is None else (self.output, self.kept))
        return [value.astype(np.float32) for value in found.values()]

    def run_outputs(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name, as new arrays with the network's own shapes and types; see `run` for the feeds."""
        self._check(feeds)
        return {name: value.copy() for name, value in self._outputs(feeds, self.outputs).items()}

    def _outputs(self, feeds: Mapping[str, NDArray[Any]], wanted: tuple[TensorSpec, ...]) -> dict[str, NDArray[Any]]:
        """Run and return the `wanted` outputs by name, in arrays that the next run overwrites."""
        rows = len(next(iter(feeds.values())))
        self.prepare(rows)
        self.upload(feeds, rows)
        self.enqueue(rows)
        found = {spec.name: self._bound[rows].staging[spec.name] for spec in wanted}
        for name, out in found.items():
            self.arena.stream.download(self.arena.address(name), out)
        self.arena.stream.synchronize()
        return found

    @property
    def uses_cuda_graphs(self) -> bool:
        return self._options.cuda_graphs

    def layer_information(self) -> str:
        """Return the engine inspector's description of every layer, as JSON."""
        inspector = self._engine.create_engine_inspector()
        text: str = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return text


class _Bound:
    """A context of an engine at one batch size. Each size has its own, since only the last graph captured from a context may be launched.

    Attributes:
        staging: pinned arrays of all inputs and outputs by name; outputs other than the network's own need not begin with the batch axis.
    """

    def __init__(self, engine: TensorRtEngine, rows: int) -> None:
        self._engine = weakref.proxy(engine)  # the engine owns this; a cycle would keep its memory until the garbage collector runs
        self._context = engine.create_context()
        weakref.finalize(self, engine.arena.stream.drain)  # a run that failed may have left runs of the context in the stream
        self._graph: Graph | None = None
        self._warm = False
        self._generation = -1
        for spec in engine.inputs:
            self._engine.accepted(self._context.set_input_shape(spec.name, (rows, *spec.shape)), f"set the shape of {spec.name}")
        self.staging: dict[str, NDArray[Any]] = {
            spec.name: engine.arena.cuda.pinned(tuple(self._context.get_tensor_shape(spec.name)), spec.dtype)
            for spec in (*engine.inputs, *engine.outputs)
        }
        activations = int(self._context.update_device_memory_size_for_shapes())
        engine.arena.reserve({ACTIVATIONS: activations, **{name: array.nbytes for name, array in self.staging.items()}})

    def enqueue(self) -> None:
        """Launch the captured graph. The first run is not captured, because TensorRT initializes itself in it; the second run is."""
        self._bind()
        stream = self._engine.arena.stream
        if not self._warm or not self._engine.uses_cuda_graphs:
            self._execute()
            if not self._warm:
                self._engine.save_runtime_cache()
            self._warm = True
            return
        if self._graph is None:
            with stream.capture() as captured:
                self._execute()
            (self._graph,) = captured
        stream.launch(self._graph)

    def _bind(self) -> None:
        """Bind the arena's addresses if they have changed."""
        arena = self._engine.arena
        if self._generation == arena.generation:
            return
        self.forget_graph()
        self._context.set_device_memory(arena.address(ACTIVATIONS), arena.nbytes(ACTIVATIONS))
        for spec in (*self._engine.inputs, *self._engine.outputs):
            self._engine.accepted(self._context.set_tensor_address(spec.name, arena.address(spec.name)), f"set the address of {spec.name}")
        self._generation = arena.generation

    def forget_graph(self) -> None:
        self._graph = None

    def _execute(self) -> None:
        self._engine.accepted(self._context.execute_async_v3(self._engine.arena.stream.handle), "run")


def integer_layers(layer_information: str) -> Iterator[str]:
    """Yield the names of the layers that run in integer kernels: those with an input that the inspector shows as int8."""
    for layer in json.loads(layer_information)["Layers"]:
        if isinstance(layer, dict) and any("int8" in str(tensor.get("Format/Datatype", "")).lower() for tensor in layer.get("Inputs", [])):
            yield str(layer.get("Name", "?"))
