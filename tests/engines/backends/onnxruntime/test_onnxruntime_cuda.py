"""ONNX Runtime on a GPU: bound buffers, proven on the CPU's own, and never another provider than the one asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import BoundSession, OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import open_session
from engines.errors import MissingBackendError

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

GRAPH = "graphs/onnxruntime/w8a8.onnx"
CUDA = "CUDAExecutionProvider"


def feeds(batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(batch)
    labels = rng.integers(0, 3, batch)
    return {
        "sample": rng.normal(size=(batch, 1, 8, 8)).astype(np.float32),
        "timestep": np.full(batch, 250, np.float32),
        "class_labels": labels,
    }


def test_bound_buffers_give_what_a_plain_run_gives_whatever_the_batch(tiny: TinyBundle) -> None:
    engine = OnnxRuntimeEngine(tiny.folder / GRAPH)
    bound = BoundSession(open_session(tiny.folder / GRAPH, {}), "cpu")
    for batch in (2, 2, 5, 2):
        (out,) = bound.run(feeds(batch))
        assert out.dtype == np.float32
        np.testing.assert_allclose(out, engine.run(feeds(batch)), rtol=0, atol=1e-6)


def test_provider_that_is_not_installed_is_a_missing_backend(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingBackendError, match=rf"(?s)no {CUDA} on this machine.*found: +CPUExecutionProvider.*\[gpu\]") as caught:
        OnnxRuntimeEngine(tiny.folder / GRAPH, provider="CUDA")
    assert caught.value.exit_code == 3


def test_session_that_fell_back_to_the_cpu_is_a_missing_backend(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    with pytest.raises(MissingBackendError, match=CUDA):
        open_session(tiny.folder / GRAPH, {}, provider="CUDA")
