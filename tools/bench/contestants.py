"""The contestants of the benchmark, and how each is loaded in its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
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
"""Graphs by `onnxruntime.quantization.quantize_static`: with its default operators, and with only Conv, Gemm and MatMul quantized."""


class Runner(Protocol):
    """A contestant that is ready to run."""

    def chain(self) -> object:
        """Sample one batch."""

    def network(self) -> object:
        """Call the network once, with both branches under guidance."""

    def outputs(self, visited: Visited) -> Float32:
        """Return the raw outputs [steps, branches * batch, ...] at the states of a chain."""


@dataclass(frozen=True)
class EngineRunner:
    """A graph in our own sampling loop.

    Attributes:
        case: case to sample.
        denoiser: denoiser that runs the graph.
        precision: precision whose corrections the chain applies; those of full precision change nothing.
    """

    case: Case
    denoiser: EngineDenoiser
    precision: str = FULL_PRECISION

    def chain(self) -> object:
        self.denoiser.forget()  # so that every chain runs like the first one of a command
        return self.case.sample({self.precision: self.denoiser}, self.precision)

    def network(self) -> object:
        return self.denoiser(*self._first)

    def outputs(self, visited: Visited) -> Float32:
        calls = zip(visited.states, visited.timesteps, strict=True)
        outs = [self.denoiser(x, timestep, visited.rows) for x, timestep in calls]
        return np.stack(outs).reshape(len(outs), -1, *visited.states.shape[2:])

    def visited(self) -> Visited:
        """Return the states of this contestant's own chain."""
        return self.case.visited({FULL_PRECISION: self.denoiser})

    def profile(self) -> dict[str, float]:
        """Return the milliseconds of a network call by operator; the engine must run on ONNX Runtime."""
        engine = self.denoiser.engine
        assert isinstance(engine, OnnxRuntimeEngine)
        return profiled(engine, self.denoiser.feeds(*self._first))

    @cached_property
    def _first(self) -> tuple[Float32, float, Int64]:
        """Inputs of the network at the first step."""
        samples = np.arange(self.case.batch, dtype=np.int64)
        return self.case.noise().start(samples), self.case.schedule.steps[0].timestep, self.case.rows(samples)


def ours(case: Case, precision: str, runtime: Runtime = "target") -> EngineRunner:
    """Load an engine of the bundle in the way `ptqd-run` does."""
    timesteps, backend = Chain(case.schedule, {}, precision).timesteps, open_backend(case.bundle, runtime)
    bank = EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch, backend=backend, timesteps=timesteps)
    return EngineRunner(case, bank[precision], precision)


def static(case: Case, name: str, engine: Callable[..., Engine] = OnnxRuntimeEngine) -> EngineRunner:
    """Load a graph made by ONNX Runtime's own tool, on a runtime opened with our settings."""
    opened = engine(case.folder / name, batch=case.engine_rows)
    return EngineRunner(case, EngineDenoiser(opened, load_conditioning(case.bundle), case.guided))


def eager(case: Case) -> Runner:
    """Load diffusers' scheduler and network in PyTorch."""
    from tools.bench.diffusers_runner import DiffusersRunner

    return DiffusersRunner.load(case)


def compiled(case: Case) -> Runner:
    """Load diffusers' scheduler and network in PyTorch, compiled by `torch.compile`."""
    from tools.bench.diffusers_runner import DiffusersRunner

    return DiffusersRunner.load(case, compiled=True)


@dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        title: display name.
        load: loads the contestant.
        on_onnxruntime: whether it runs on ONNX Runtime, whose profiler shows where the time goes.
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
"""All contestants by name, in the order of the tables."""
