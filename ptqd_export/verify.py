"""Hold an exported graph against the torch oracle, on real states, before it leaves the build."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib.activation_states import States
from calib.moments import FOLDS, Moments, observe
from calib.noise_fit import NoiseFit, fit_noise
from calib.oracle import fake_quantized
from calib.quantized_layer import QuantizedLayer
from engines.arrays import Float32
from engines.backends.onnxruntime import Mode, OnnxRuntimeEngine
from engines.errors import PtqdError
from engines.network import STATE, TIMESTEP
from ptqd_export.models.base import LoadedModel

TOLERANCE_DB = 1.0
"""How much further a graph may be from the float32 oracle than that is from the float64 oracle."""

STANDARD_ERRORS = 5.0
"""How far statistics of graph and oracle may lie apart."""


@dataclass(frozen=True)
class Verification:
    """What was measured of one precision; every figure is in dB of the output's power.

    Attributes:
        noise: full precision against the graph as it runs: the quantization noise.
        exact_noise: the same in the runtime's exact mode.
        rounding: oracle in float64 against oracle in float32: what the order of float sums costs.
        exact_match: float32 oracle against the graph in exact mode.
        fast_match: float32 oracle against the graph as it runs.
    """

    noise: float
    exact_noise: float
    rounding: float
    exact_match: float
    fast_match: float


def verify(model: LoadedModel, graph: Path, layers: Sequence[QuantizedLayer], states: States) -> Verification:
    """Compare a quantized graph with its oracle on conditional outputs at the given states.

    Raises:
        PtqdError: the graph in exact mode is further from the oracle than rounding explains, or its noise statistics, as it
            runs, are not the oracle's within sampling error.
    """
    reference = _torch_outputs(model, states, ())
    single, double = _torch_outputs(model, states, layers), _torch_outputs(model, states, layers, torch.float64)
    exact, fast = _graph_outputs(model, graph, states, "exact"), _graph_outputs(model, graph, states, "fast")
    found = Verification(
        noise=snr_db(reference, fast),
        exact_noise=snr_db(reference, exact),
        rounding=snr_db(double, single),
        exact_match=snr_db(single, exact),
        fast_match=snr_db(single, fast),
    )
    if found.exact_match < found.rounding - TOLERANCE_DB:
        raise PtqdError(
            f"The graph {graph.name} does not compute what its oracle computes.",
            found=f"they agree to {found.exact_match:.1f} dB",
            expected=f"at least {found.rounding - TOLERANCE_DB:.1f} dB",
            mend="this is a bug in ptqd-export: please report the model",
        )
    _same_statistics(graph, *(_noise(states, reference, q) for q in (single.astype(np.float32), fast)))
    return found


def snr_db(signal: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """10 log10 of the signal's power over that of the difference; infinite where there is none."""
    signal = signal.astype(np.float64)
    noise = np.mean((signal - approximation) ** 2)
    return float(10 * np.log10(np.mean(signal**2) / noise)) if noise else float("inf")


def _torch_outputs(
    model: LoadedModel, states: States, layers: Sequence[QuantizedLayer], dtype: torch.dtype = torch.float32
) -> NDArray[np.floating]:
    adapter = copy.copy(model.adapter)
    adapter._modules = dict(adapter._modules)  # a shallow copy shares the dict of children
    adapter.network = fake_quantized(model.adapter.network, layers, dtype)
    inputs = [torch.from_numpy(value) for value in _feeds(model, states).values()]
    with torch.no_grad():
        out: torch.Tensor = adapter(*(value.to(dtype) if value.is_floating_point() else value for value in inputs))
    return out.numpy()


def _graph_outputs(model: LoadedModel, graph: Path, states: States, mode: Mode) -> Float32:
    return OnnxRuntimeEngine(graph, mode=mode).run(_feeds(model, states))


def _feeds(model: LoadedModel, states: States) -> dict[str, NDArray[Any]]:
    conditions = {} if model.conditioning is None else model.conditioning.feeds(states.rows, guided=False)
    return {STATE: states.samples, TIMESTEP: states.timesteps, **conditions}


def _noise(states: States, reference: NDArray[np.floating], quantized: Float32) -> NoiseFit:
    folds = np.arange(len(states.rows), dtype=np.int64) % FOLDS
    moments: Moments = observe(states.samples, reference[None].astype(np.float32), quantized[None], folds)
    return fit_noise(moments)


def _same_statistics(graph: Path, oracle: NoiseFit, engine: NoiseFit) -> None:
    """`k` within its standard errors; residual variance within those of a variance estimated from as many independent values as samples."""
    apart = abs(engine.k - oracle.k) / max(oracle.k_standard_error, 1e-12)
    relative = abs(np.log(engine.s2 / oracle.s2)) / np.sqrt(2 / oracle.n)
    if max(apart, relative) > STANDARD_ERRORS:
        raise PtqdError(
            f"The noise of {graph.name} as it runs is not the oracle's.",
            found=f"k {engine.k:.5f}, residual variance {engine.s2:.3e}",
            expected=f"k {oracle.k:.5f}, residual variance {oracle.s2:.3e}",
            mend="compare the runtime's exact mode: its fast kernels may be wrong on this CPU",
        )
