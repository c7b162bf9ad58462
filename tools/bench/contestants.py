"""The contestants: how each is loaded, in a process that holds no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from engines.arrays import Float32, Int64
from engines.backends.base import Engine
from engines.backends.choice import Runtime, open_backend
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.openvino.openvino_backend import OpenVinoEngine
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank, load_conditioning
from engines.networks.engine_denoiser import EngineDenoiser
from tools.bench.case import FULL_PRECISION, Case, Visited
from tools.bench.operators import profiled

STATIC, STATIC_WEIGHTED = "static.onnx", "static-weighted.onnx"
"""Graphs of `onnxruntime.quantization.quantize_static`: with its defaults, and of Conv, Gemm and MatMul alone."""


class Runner(Protocol):
    """A contestant that is ready to run."""

    def chain(self) -> object:
        """Sample one batch."""

    def network(self) -> object:
        """One call of the network, both branches under guidance."""

    def outputs(self, visited: Visited) -> Float32:
        """Raw outputs [steps, branches * batch, ...] at the states of a chain."""


@dataclass(frozen=True)
class EngineRunner:
    """A graph in our own loop.

    Attributes:
        case: what is sampled.
        graph: its file.
        denoiser: runs the graph.
        precision: whose corrections the chain applies; those of full precision change nothing.
    """

    case: Case
    graph: Path
    denoiser: EngineDenoiser
    precision: str = FULL_PRECISION

    def chain(self) -> object:
        self.denoiser.forget()  # every chain is the first of a command
        return self.case.sample({self.precision: self.denoiser}, self.precision)

    def network(self) -> object:
        return self.denoiser(*self._first)

    def outputs(self, visited: Visited) -> Float32:
        calls = zip(visited.states, visited.timesteps, strict=True)
        outs = [self.denoiser(x, timestep, visited.rows) for x, timestep in calls]
        return np.stack(outs).reshape(len(outs), -1, *visited.states.shape[2:])

    def visited(self) -> Visited:
        """The states of this contestant's own chain."""
        return self.case.visited({FULL_PRECISION: self.denoiser})

    def profile(self) -> dict[str, float]:
        """Milliseconds of a network call by operator; of engines of ONNX Runtime."""
        return profiled(self.denoiser.engine, self.graph, self.denoiser.feeds(*self._first))

    @cached_property
    def _first(self) -> tuple[Float32, float, Int64]:
        """What the network is given at the first step."""
        samples = np.arange(self.case.batch, dtype=np.int64)
        return self.case.noise().start(samples), self.case.schedule.steps[0].timestep, self.case.rows(samples)


def ours(case: Case, precision: str, runtime: Runtime = "target") -> EngineRunner:
    """An engine of the bundle, opened as `ptqd-run` opens it."""
    timesteps, backend = Chain(case.schedule, {}, precision).timesteps, open_backend(case.bundle, runtime)
    bank = EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch, backend=backend, timesteps=timesteps)
    record = case.bundle.precision(precision)
    graph = record.graph if record.pieces is None else record.pieces.body
    return EngineRunner(case, case.bundle.graph(graph, record.graph), bank[precision], precision)


def static(case: Case, name: str, engine: Callable[..., Engine] = OnnxRuntimeEngine) -> EngineRunner:
    """A graph of ONNX Runtime's own tool, on a runtime as we open it."""
    graph = case.folder / name
    return _in_our_loop(case, graph, engine(graph, batch=case.engine_rows))


def _in_our_loop(case: Case, graph: Path, engine: Engine, precision: str = FULL_PRECISION) -> EngineRunner:
    return EngineRunner(case, graph, EngineDenoiser(engine, load_conditioning(case.bundle), case.guided), precision)


def eager(case: Case) -> Runner:
    """diffusers' scheduler and network in PyTorch."""
    from tools.bench.diffusers_runner import DiffusersRunner

    return DiffusersRunner.load(case)


def compiled(case: Case) -> Runner:
    """The same through `torch.compile`."""
    from tools.bench.diffusers_runner import DiffusersRunner

    return DiffusersRunner.load(case, compiled=True)


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        title: for people.
        load: opens it.
        on_onnxruntime: the runtime's profiler can be asked where its time goes.
    """

    title: str
    load: Callable[[Case], Runner]
    on_onnxruntime: bool = False


EAGER, FP32 = "eager", "fp32"

CONTESTANTS: Mapping[str, Contestant] = {
    EAGER: Contestant("diffusers, PyTorch eager", eager),
    "compile": Contestant("diffusers, `torch.compile`", compiled),
    FP32: Contestant("FP32, ONNX Runtime", partial(ours, precision="fp32"), True),
    "static": Contestant("`quantize_static`, its defaults", partial(static, name=STATIC), True),
    "static-weighted": Contestant("`quantize_static`, Conv, Gemm and MatMul", partial(static, name=STATIC_WEIGHTED), True),
    "openvino-fp32": Contestant("FP32, OpenVINO", partial(ours, precision="fp32", runtime="openvino")),
    "openvino-static": Contestant("`quantize_static`, OpenVINO", partial(static, name=STATIC_WEIGHTED, engine=OpenVinoEngine)),
    "w8a8": Contestant("ours, W8A8, ONNX Runtime", partial(ours, precision="w8a8"), True),
    "w7a8": Contestant("ours, W7A8, ONNX Runtime", partial(ours, precision="w7a8"), True),
    "w4a8": Contestant("ours, W4A8, ONNX Runtime", partial(ours, precision="w4a8"), True),
    "openvino-w8a8": Contestant("ours, W8A8, OpenVINO", partial(ours, precision="w8a8", runtime="openvino")),
    "openvino-w7a8": Contestant("ours, W7A8, OpenVINO", partial(ours, precision="w7a8", runtime="openvino")),
    "openvino-w4a8": Contestant("ours, W4A8, OpenVINO", partial(ours, precision="w4a8", runtime="openvino")),
}
"""In the order of the tables."""
