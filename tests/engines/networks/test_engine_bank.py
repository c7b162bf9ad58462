"""The engine bank: engines open once and when asked for, verified, and never silently unguided."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import TargetRecord
from engines.errors import BundleError, PtqdError, UsageError
from engines.networks.engine_bank import EngineBank, load_conditioning

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

X = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
ROWS = np.array([2, 0], dtype=np.int64)


def bank_of(bundle: TinyBundle, guidance: float = 1.5) -> EngineBank:
    return EngineBank(Bundle.open(bundle.folder), guidance)


@pytest.mark.parametrize("precision", ["fp32", "w4a8"])
def test_guided_denoiser_gives_both_branches_of_the_right_network(tiny: TinyBundle, precision: str) -> None:
    out = bank_of(tiny)[precision](X, 250.0, ROWS)
    network = tiny.networks[precision]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, [network(X, 250.0, ROWS), network(X, 250.0, np.array([3, 3]))], rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_up_to_one_evaluates_the_conditional_branch_alone(tiny: TinyBundle, guidance: float) -> None:
    """diffusers' rule: a pipeline is guided if `guidance_scale > 1`."""
    out = bank_of(tiny, guidance)["fp32"](X, 250.0, ROWS)
    np.testing.assert_allclose(out, [tiny.networks["fp32"](X, 250.0, ROWS)], rtol=0, atol=1e-5)


def test_unconditional_network_takes_no_rows(tiny_unconditional: TinyBundle) -> None:
    x = np.repeat(X, 3, axis=1)
    bank = bank_of(tiny_unconditional, 1.0)
    assert bank.conditioning is None
    out = bank["fp32"](x, 250.0, ROWS)
    np.testing.assert_allclose(out, [tiny_unconditional.networks["fp32"](x, 250.0, np.array([3, 3]))], rtol=0, atol=1e-5)


def test_engines_open_when_asked_for_and_once(tiny: TinyBundle, opened: list[str]) -> None:
    bank = bank_of(tiny)
    assert opened == []
    assert bank["w8a8"] is bank["w8a8"]
    assert opened == ["w8a8"]
    bank.open(["w8a8", "fp32", "fp32"])
    assert opened == ["w8a8", "fp32"]


@pytest.mark.parametrize(("target", "mode"), [("onnxruntime", "fast"), ("tensorrt", "exact"), ("tensorrt-rtx", "exact")])
def test_graphs_of_another_runtime_run_as_they_are_written(
    tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, target: Any, mode: str
) -> None:
    modes: list[str] = []

    def start(path: Any, *, mode: Any, **options: Any) -> OnnxRuntimeEngine:
        modes.append(mode)
        return OnnxRuntimeEngine(path, mode=mode, **options)

    monkeypatch.setattr("engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", start)
    bundle = Bundle.open(tiny.folder)
    record = TargetRecord(name=target, high_precision="fp32", profile=None, workspace_gib=None)
    bundle.manifest = bundle.manifest.model_copy(update={"target": record})
    assert np.isfinite(EngineBank(bundle, 1.5)["w4a8"](X, 250.0, ROWS)).all()
    assert modes == [mode]


def test_unknown_precision_is_an_error_of_usage_that_names_the_known_ones(tiny: TinyBundle) -> None:
    with pytest.raises(UsageError, match=r"(?s)no such precision.*w2a2.*fp32 or w4a8 or w8a8"):
        bank_of(tiny)["w2a2"]


def test_weights_beside_a_graph_are_verified_too(own_tiny: TinyBundle, opened: list[str]) -> None:
    weights = "graphs/onnxruntime/w4a8.onnx.data"
    (own_tiny.folder / weights).write_bytes(b"weights")
    own_tiny.rehash(weights)
    bank_of(own_tiny).open(["w4a8"])
    assert opened == ["w4a8"]
    own_tiny.edit(weights, lambda _: b"wEights")
    with pytest.raises(BundleError, match=r"w4a8\.onnx\.data"):
        bank_of(own_tiny).open(["w4a8"])
    assert opened == ["w4a8"]


def test_damaged_graph_is_told_before_an_engine_starts(own_tiny: TinyBundle, opened: list[str]) -> None:
    own_tiny.edit("graphs/onnxruntime/fp32.onnx", lambda content: content[:-1])
    with pytest.raises(BundleError, match="changed or damaged"):
        bank_of(own_tiny)["fp32"]
    assert opened == []


@pytest.mark.parametrize(
    "remove", [lambda model: model.update(conditioning=None), lambda model: model["conditioning"].update(null_class=None)]
)
def test_model_without_a_null_condition_cannot_be_guided(own_tiny: TinyBundle, remove: Callable[[dict[str, Any]], None]) -> None:
    own_tiny.edit_json("manifest.json", lambda manifest: remove(manifest["model"]))
    with pytest.raises(UsageError, match=r"(?s)cannot be guided.*guidance 2.*expected: guidance 1"):
        bank_of(own_tiny, 2.0)
    assert not bank_of(own_tiny, 1.0).guided


def test_prepared_embeddings_come_from_their_verified_file(own_tiny: TinyBundle) -> None:
    file = "conditioning/default.npz"
    (own_tiny.folder / "conditioning").mkdir()
    np.savez(own_tiny.folder / file, tokens=np.arange(8.0).reshape(4, 2))
    own_tiny.rehash(file)
    record = {"inputs": [{"name": "tokens", "dtype": "float32", "shape": [2]}], "rows": 4, "null_class": None, "file": file}
    own_tiny.edit_json("manifest.json", lambda manifest: manifest["model"].update(conditioning=record))
    table = load_conditioning(Bundle.open(own_tiny.folder))
    assert table is not None
    assert table.feeds(np.array([3]), guided=False)["tokens"].tolist() == [[6.0, 7.0]]
    own_tiny.edit(file, lambda content: content + b"?")
    with pytest.raises(PtqdError, match="changed or damaged"):
        load_conditioning(Bundle.open(own_tiny.folder))
