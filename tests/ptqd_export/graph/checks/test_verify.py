"""A right graph passes with its figures; wrong ones are refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from calib.quantizers.oracle import fake_quantized
from calib.walk.activation_states import States
from engines.arrays import Float32
from engines.errors import PtqdError
from ptqd_export.graph.checks import verify as module
from ptqd_export.graph.checks.verify import FUSED, Verification, snr_db, verify
from tests.ptqd_export.graph.checks.planted_faults import more_noise

if TYPE_CHECKING:
    from engines.backends.base import Backend
    from tests.ptqd_export.conftest import Built


def _verify(built: Built, precision: str, graph: Path | None = None) -> Verification:
    states = States.load(built.stage("states") / "states.npz")
    return verify(built.context.model, graph or built.graph(precision), built.quantize(precision), states)


def test_power_ratio_in_decibels() -> None:
    signal = np.array([3.0, -4.0], dtype=np.float32)
    assert snr_db(signal, signal + np.float32(0.5)) == pytest.approx(10 * np.log10(12.5 / 0.25))
    assert snr_db(signal, signal) == np.inf


@pytest.mark.parametrize(("heads", "tosses", "chance"), [(0, 3, 1.0), (3, 3, 1 / 8), (2, 3, 0.5), (1, 1, 0.5), (9, 10, 11 / 1024)])
def test_chance_of_a_fair_coin(heads: int, tosses: int, chance: float) -> None:
    assert module._chance(heads, tosses) == pytest.approx(chance)


@pytest.mark.parametrize("precision", ["w8a8", "w4a4"])
def test_right_graph_passes_with_its_figures(class_build: Built, precision: str) -> None:
    found = _verify(class_build, precision)
    stored = json.loads((class_build.stage(f"quantize-{precision}") / "precision.json").read_text())["verification"]
    assert asdict(found) == pytest.approx(stored, abs=0.01)
    assert found.noise < found.exact_match  # rounding ties cost less than quantization does
    assert found.exact_noise == pytest.approx(found.noise, abs=1.5)


def test_noise_grows_as_bits_fall(class_build: Built) -> None:
    noise = [_verify(class_build, precision).noise for precision in ("w8a8", "w4a8", "w3a8")]
    assert noise[0] > noise[1] + 3 > noise[2] + 3


def test_weights_alone_agree_to_float_precision(cross_build: Built) -> None:
    found = _verify(cross_build, "w4a16")
    assert found.exact_match > 100
    assert found.noise == pytest.approx(found.exact_noise, abs=0.01)


def test_graph_of_another_precision_is_refused(class_build: Built) -> None:
    with pytest.raises(PtqdError, match="does not compute what its oracle computes"):
        _verify(class_build, "w8a8", class_build.graph("w4a8"))


@pytest.mark.parametrize("count", [1, 4, 13])
def test_graph_that_computes_noise_is_refused_at_few_states(class_build: Built, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Between right layers, even: a coin that is tossed once proves nothing, the power of the difference does."""
    run = module._graph_outputs

    def random(model: Any, graph: Path, states: States, backend: Backend, on_batch: Any) -> Float32:
        out = run(model, graph, states, backend, on_batch)
        return np.random.default_rng(0).normal(0, out.std(), out.shape).astype(np.float32)

    monkeypatch.setattr(module, "_graph_outputs", random)
    states = States.load(class_build.stage("states") / "states.npz").first(count)
    with pytest.raises(PtqdError, match="does not compute what its oracle computes"):
        verify(class_build.context.model, class_build.graph("w8a8"), class_build.quantize("w8a8"), states)


def test_runtime_whose_fast_kernels_are_a_tenth_noisier_is_refused(class_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._graph_outputs
    stored = json.loads((class_build.stage("quantize-w8a8") / "precision.json").read_text())["verification"]

    def noisy(model: Any, graph: Path, states: States, backend: Backend, on_batch: Any) -> Float32:
        out = run(model, graph, states, backend, on_batch)
        return more_noise(out, stored["noise"]) if backend == FUSED else out

    monkeypatch.setattr(module, "_graph_outputs", noisy)
    with pytest.raises(PtqdError, match=r"The noise of w8a8\.onnx as it runs is not the oracle's") as error:
        _verify(class_build, "w8a8")
    assert "residual variance" in str(error.value)


def test_runtime_whose_fast_kernels_shrink_the_output_is_refused(class_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._graph_outputs
    monkeypatch.setattr(module, "_graph_outputs", lambda *given: run(*given) * np.float32(0.99 if given[3] == FUSED else 1))
    with pytest.raises(PtqdError, match="as it runs is not the oracle's"):
        _verify(class_build, "w8a8")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("mps", torch.float64, "cpu"),
        ("mps", torch.float32, "mps"),
        ("cuda:1", torch.float64, "cuda:1"),
        ("cpu", torch.float64, "cpu"),
    ],
)
def test_float64_is_computed_where_there_is_any(device: str, dtype: torch.dtype, expected: str) -> None:
    assert module.oracle_device(device, dtype) == expected


def test_oracles_are_placed_on_the_device_that_is_asked_for(class_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without float64, the float64 oracle alone stays on the CPU."""
    placed, quantize = list[tuple[str | None, torch.dtype]](), fake_quantized

    def told(network: nn.Module, layers: Any, dtype: torch.dtype, device: str | None) -> nn.Module:
        placed.append((device, dtype))
        return quantize(network, layers, dtype, "cpu")

    monkeypatch.setattr(module, "fake_quantized", told)
    monkeypatch.setattr(module, "oracle_device", lambda device, dtype: "cpu:0" if dtype == torch.float64 else device)
    states = States.load(class_build.stage("states") / "states.npz").first(8)
    verify(class_build.context.model, class_build.graph("w8a8"), class_build.quantize("w8a8"), states, device="cpu")
    assert placed == [("cpu", torch.float32), ("cpu", torch.float32), ("cpu:0", torch.float64)]


@pytest.mark.parametrize(("groups", "wanted", "expected"), [(1, 64, 64), (8, 64, 16), (1, 8, 8), (4, 8, 8), (2, 256, 128)])
def test_states_are_shared_among_the_graphs_of_a_precision(groups: int, wanted: int, expected: int) -> None:
    assert module.verified_states(groups, wanted) == expected
