"""Compares an exported graph with the torch oracle on real states, before the graph leaves the build."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib.quantizers.attention.quantized_attention import QuantizedAttention, fake_attention
from calib.quantizers.oracle import exact_float32, fake_quantized
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.walk.activation_states import States
from engines.arrays import Float32, Float64
from engines.backends.base import Backend
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, release_activations
from engines.errors import PtqdError
from engines.host.heap import release_free_pages
from engines.networks.embeddings import TIMESTEP
from ptqd_export.graph.checks.layer_check import check_layers
from ptqd_export.graph.checks.paired_noise import PairedNoise, paired_noise
from ptqd_export.graph.stand_in_backend import StandInBackend
from ptqd_export.models.base import LoadedModel

TOLERANCE_DB = 1.0
"""How much further from the float64 oracle a graph may be than the float32 oracle: both contain the error of one set of float32 sums."""

FLOAT_MATCH_DB = 80.0
"""Agreement that needs no explanation: that of two float32 runs in which no value was rounded to another integer."""

LEAST_FLOAT_DB = 40.0
"""Least agreement of a half-precision network; 60 to 80 dB are usual."""

LEAST_BATCH, MOST_BATCH = 8, 64
"""States per batch. In larger batches, the float64 activations of a large network would take more memory than the network."""

BATCH_VALUES = 2**14
"""Values in the states of a batch of more than `LEAST_BATCH` states. In small batches of small networks, calls cost more than sums."""

CHANCE = 1e-4
"""Highest probability that a correct graph is refused."""

K_MARGIN, RATIO_MARGIN = 0.001, 0.01
"""Differences in `k` and in the logarithm of the residual variance that a runtime's own order of sums may make, beyond sampling error."""

LED_STATES = 4
"""States that a graph is held against its oracle at layer by layer."""

VERIFIED_STATES = 64
"""States that the graphs of a precision are held against their oracles at."""

LEAST_STATES = 16
"""Fewest states for the graph of one group of steps."""

WITHOUT_FLOAT64 = ("mps",)
"""Kinds of devices on which PyTorch has no float64."""

RUNS, FLOAT_RUNS = 4, 3
"""How often `verify` and `verify_float` run a network on all states. `verify` runs it once more for a reference, and for bfloat16."""


@dataclass(frozen=True)
class Verification:
    """Agreement of one precision's outputs. Every figure is a signal-to-noise ratio in dB.

    Attributes:
        noise: full precision against the graph as it runs, which is the quantization noise.
        exact_noise: full precision against the graph in the runtime's exact mode.
        rounding: float64 oracle against float32 oracle, which is the cost of the order of float sums.
        exact_match: float64 oracle against the graph in exact mode.
        fast_match: float64 oracle against the graph as it runs.
    """

    noise: float
    exact_noise: float
    rounding: float
    exact_match: float
    fast_match: float


FUSED, EXACT = OnnxRuntimeBackend(), StandInBackend(OnnxRuntimeBackend(mode="exact"))


def verified_states(groups: int, wanted: int = VERIFIED_STATES) -> int:
    """Return the number of states that a graph is verified at if a precision has this many, one per group of steps.

    Args:
        groups: number of graphs.
        wanted: states of all graphs together; each gets `LEAST_STATES`, or all that are wanted if they are fewer.
    """
    return max(min(LEAST_STATES, wanted), wanted // groups)


def batch_size(sample_shape: Sequence[int]) -> int:
    """Return the number of states per batch."""
    return min(max(LEAST_BATCH, BATCH_VALUES // math.prod(sample_shape)), MOST_BATCH)


def oracle_device(device: str, dtype: torch.dtype) -> str:
    """Return the device that computes in a type: the given one, or the CPU for float64 on a device that has none."""
    return "cpu" if dtype == torch.float64 and torch.device(device).type in WITHOUT_FLOAT64 else device


def verify(
    model: LoadedModel,
    graph: Path,
    layers: Sequence[QuantizedLayer],
    states: States,
    *,
    reference: NDArray[np.floating] | None = None,
    backend: Backend = FUSED,
    float32: Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: Sequence[QuantizedAttention] = (),
    on_batch: Callable[[], None] = lambda: None,
) -> Verification:
    """Compare the conditional outputs of a quantized graph with those of its oracle at the given states.

    Args:
        model: model whose network was quantized.
        graph: the graph as it runs.
        layers: quantized layers of the graph.
        states: states to compare at.
        reference: full-precision outputs at these states, see `full_precision_outputs`; None computes them.
        backend: backend that runs the graph.
        float32: the graph before its float part was converted to another type; if given, the exact mode runs this graph.
        dtype: type of the oracle that the noise statistics are compared with: bfloat16 adds noise of its own, float16 does not.
        device: device of the oracles, see `oracle_device`.
        attention: quantized attention of the graph.
        on_batch: called after every batch of every run.

    Raises:
        PtqdError: the graph in exact mode is further from the oracle than rounding explains, or the noise statistics of the graph as it
            runs differ from the oracle's by more than the sampling error.
    """
    reference = full_precision_outputs(model, states, on_batch, device) if reference is None else reference
    check_layers(model, float32 or graph, layers, next(_batches(model, states.first(LED_STATES))), attention)
    single, double = (oracle_outputs(model, states, layers, on_batch, kind, device, attention) for kind in (torch.float32, torch.float64))
    exact = _graph_outputs(model, float32 or graph, states, EXACT, on_batch)
    fast = _graph_outputs(model, graph, states, backend, on_batch)
    found = Verification(
        noise=snr_db(reference, fast),
        exact_noise=snr_db(reference, exact),
        rounding=snr_db(double, single),
        exact_match=snr_db(double, exact),
        fast_match=snr_db(double, fast),
    )
    _check_rounding(graph, found, reference, double, single, exact)
    oracle = single if dtype == torch.float32 else oracle_outputs(model, states, layers, on_batch, dtype, device, attention)
    _check_noise(graph, paired_noise(reference, oracle, fast))
    return found


def full_precision_outputs(
    model: LoadedModel, states: States, on_batch: Callable[[], None] = lambda: None, device: str = "cpu"
) -> NDArray[np.floating]:
    """Return the network's conditional outputs from torch. Every precision that is verified at these states can share them."""
    return oracle_outputs(model, states, (), on_batch, device=device)


def verify_float(
    model: LoadedModel,
    graph: Path,
    states: States,
    backend: Backend = EXACT,
    on_batch: Callable[[], None] = lambda: None,
    device: str = "cpu",
) -> Verification:
    """Compare a full-precision graph in a smaller float type with torch. Its noise is the cost of that type.

    Raises:
        PtqdError: the type costs more than rounding can explain.
    """
    single, double = (oracle_outputs(model, states, (), on_batch, kind, device) for kind in (torch.float32, torch.float64))
    out = _graph_outputs(model, graph, states, backend, on_batch)
    noise, match = snr_db(single, out), snr_db(double, out)
    found = Verification(noise=noise, exact_noise=noise, rounding=snr_db(double, single), exact_match=match, fast_match=match)
    if match < LEAST_FLOAT_DB:
        raise PtqdError(
            f"The network does not fit the float type of {graph.name}.",
            found=f"the output agrees with full precision to {match:.1f} dB",
            expected=f"at least {LEAST_FLOAT_DB:.0f} dB",
            mend='values overflow: leave this precision out, and set target.high_precision to "fp32"',
        )
    return found


def _check_rounding(
    graph: Path,
    found: Verification,
    reference: NDArray[np.floating],
    double: NDArray[np.floating],
    single: NDArray[np.floating],
    exact: Float32,
) -> None:
    """Compare sample by sample: of two correct graphs, each is the further one in at most half of the samples. Means would say little: a
    value at a rounding tie that falls the other way changes the rest of its sample, and such samples are rare in small networks. At few
    samples a coin says little either: then the layers have been compared one by one, and the mean is bounded.
    """
    rounding = np.maximum(_power(single - double), 10 ** (-FLOAT_MATCH_DB / 10) * _power(double))
    further = int(np.sum(_power(exact - double) > 10 ** (TOLERANCE_DB / 10) * rounding))
    bound = 2 * max(rounding.mean(), _power(double - reference).mean())  # two networks with independent noise are twice its power apart
    if _chance(further, len(rounding)) < CHANCE or not _power(exact - double).mean() <= bound:
        raise PtqdError(
            f"The graph {graph.name} does not compute what its oracle computes.",
            found=f"they agree to {found.exact_match:.1f} dB, and {further} of {len(rounding)} samples are worse than rounding explains",
            expected=f"about {found.rounding:.1f} dB, and at most half of the samples worse",
            mend="this is a bug in ptqd-export: please report the model",
        )


def _chance(heads: int, tosses: int) -> float:
    """Probability of at least this many heads."""
    return float(sum(math.comb(tosses, count) for count in range(heads, tosses + 1)) / 2**tosses)


def _power(difference: NDArray[np.floating]) -> Float64:
    """[samples] mean square."""
    return np.asarray(np.mean(np.square(difference, dtype=np.float64), axis=tuple(range(1, difference.ndim))))


def snr_db(signal: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """10 log10 of the signal's power over the power of the difference; infinite if there is no difference."""
    signal = signal.astype(np.float64)
    noise = np.mean((signal - approximation) ** 2)
    return float(10 * np.log10(np.mean(signal**2) / noise)) if noise else float("inf")


def oracle_outputs(
    model: LoadedModel,
    states: States,
    layers: Sequence[QuantizedLayer],
    on_batch: Callable[[], None] = lambda: None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    attention: Sequence[QuantizedAttention] = (),
) -> NDArray[np.floating]:
    """Return the conditional outputs [N, ...] of the network with these layers and attention quantized, from torch in float32 or float64
    on a device, see `oracle_device`. `on_batch` is called after every batch.
    """
    device = oracle_device(device, dtype)
    adapter = model.with_network(fake_quantized(model.adapter.network, layers, dtype, device)).adapter
    wide = torch.promote_types(dtype, torch.float32)
    types = {TIMESTEP: wide}  # half precision cannot represent a timestep of 999

    def run(feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.floating]:
        inputs = {name: torch.from_numpy(value).to(device) for name, value in feeds.items()}
        with fake_attention(attention):
            out: torch.Tensor = adapter(
                *(value.to(types.get(name, dtype)) if value.is_floating_point() else value for name, value in inputs.items())
            )
        on_batch()
        return out.to(wide).cpu().numpy()

    with torch.no_grad(), exact_float32():
        outputs = [run(feeds) for feeds in _batches(model, states)]
    _trim()
    return np.concatenate(outputs)


def _graph_outputs(model: LoadedModel, graph: Path, states: States, backend: Backend, on_batch: Callable[[], None]) -> Float32:
    engine, outputs = backend.open(graph, 1), list[Float32]()
    for feeds in _batches(model, states):
        outputs.append(engine.run(feeds))
        on_batch()
    del engine
    _trim()
    return np.concatenate(outputs)


def _trim() -> None:
    """Return the memory of a network to the system before the next one opens: networks are run one after the other."""
    release_activations()
    release_free_pages()


def batches(states: States) -> int:
    """Return the number of batches of a run."""
    return math.ceil(len(states.rows) / batch_size(states.samples.shape[1:]))


def _batches(model: LoadedModel, states: States) -> Iterator[dict[str, NDArray[Any]]]:
    size = batch_size(states.samples.shape[1:])
    for begin in range(0, len(states.rows), size):
        part = slice(begin, begin + size)
        yield model.feeds(states.samples[part], states.timesteps[part], states.rows[part], guided=False)


def _check_noise(graph: Path, noise: PairedNoise) -> None:
    """Refuse noise that differs from the oracle's by more than sampling and the order of sums explain."""
    k_bound, ratio_bound = noise.bounds(CHANCE)
    if abs(noise.k - noise.oracle_k) > K_MARGIN + k_bound or not abs(noise.log_ratio) <= RATIO_MARGIN + ratio_bound:
        raise PtqdError(
            f"The noise of {graph.name} as it runs is not the oracle's.",
            found=f"k {noise.k:.5f}, residual variance {noise.variance:.3e}",
            expected=f"k {noise.oracle_k:.5f} within {K_MARGIN + k_bound:.5f}, "
            f"residual variance {noise.oracle_variance:.3e} within {np.expm1(RATIO_MARGIN + ratio_bound):.1%}",
            mend="compare with the runtime's exact mode: its fast kernels may be wrong on this CPU",
        )
