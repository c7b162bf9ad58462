"""Chains whose steps reuse deep features: the bank opens the two networks of a cut, and samples stay those of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.backends.openvino.openvino_backend import OpenVinoBackend
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import batches
from engines.errors import BundleError, UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.cut_engines import CutEngines
from engines.networks.engine_bank import EngineBank
from tests.engines.cut_bundle import CUT

if TYPE_CHECKING:
    from engines.arrays import Float32
    from engines.backends.base import Backend
    from tests.conftest import TinyBundle

X, ROWS = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32), np.array([2, 0, 1])
SAMPLES = 64


def network(bundle: TinyBundle, name: str, backend: Backend | None = None) -> CutEngines:
    found = EngineBank(Bundle.open(bundle.folder), 1.5, batch=3, backend=backend)[f"{name}+{CUT}"]
    assert isinstance(found, CutEngines)
    return found


@pytest.mark.parametrize("backend", [None, OpenVinoBackend()], ids=["ONNX Runtime", "OpenVINO"])
def test_features_of_the_same_state_give_the_whole_network_bit_for_bit(cut: TinyBundle, backend: Backend | None) -> None:
    if backend is not None:
        pytest.importorskip("openvino")
    engines = network(cut, "w8a8", backend)
    whole = EngineBank(Bundle.open(cut.folder), 1.5, batch=3, backend=backend)["w8a8"](X, 500.0, ROWS)
    out, kept = engines.keep(X, 500.0, ROWS)
    assert kept.shape[:2] == (3, 2)
    np.testing.assert_array_equal(out, whole)
    np.testing.assert_array_equal(engines.reuse(X, 500.0, ROWS, kept), whole)
    np.testing.assert_array_equal(engines(X, 500.0, ROWS), whole)


def test_features_of_another_state_stay_those_that_were_kept(cut: TinyBundle) -> None:
    engines, tiny = network(cut, "fp32"), cut.networks["fp32"]
    _, kept = engines.keep(X, 900.0, ROWS)
    out = engines.reuse(2 * X, 100.0, ROWS, kept)
    for branch, classes in enumerate((ROWS, np.full(3, 3))):
        np.testing.assert_allclose(out[branch], tiny(X, 900.0, classes) + 0.9 * X, rtol=0, atol=1e-5)


def sampled(bundle: TinyBundle, batch: int, **options: Any) -> Float32:
    opened, noise = Bundle.open(bundle.folder), NoiseSource(1, (1, 8, 8))
    chain, numbers = ChainChoice(**options).open(opened, batch), np.arange(SAMPLES)
    return np.concatenate([chain.sample(noise, part, part % 3) for part in batches(numbers, batch)])


def test_sample_does_not_depend_on_its_batch(cut: TinyBundle) -> None:
    at_once = sampled(cut, 64)
    for batch in (1, 7):
        np.testing.assert_allclose(sampled(cut, batch), at_once, rtol=0, atol=1e-5)


def test_chain_reuses_the_features_of_the_step_before(cut: TinyBundle) -> None:
    """The oracle walks the same chain with the two networks by hand."""
    opened = Bundle.open(cut.folder)
    chain = ChainChoice().open(opened, SAMPLES)
    assert chain.networks == tuple(dict.fromkeys(f"{step.precision}+{CUT}" for step in chain.schedule.steps))
    assert chain.step_networks[1] == f"{chain.schedule.steps[1].precision}+{CUT}"
    visited = dict[int, bool]()
    for name in chain.networks:
        engines = chain.denoisers[name]
        assert isinstance(engines, CutEngines)
    for move in map(chain.move, chain.schedule.steps):
        visited[move.index] = move.reuses
    assert visited == {step.step: step.step % 2 == 1 for step in chain.schedule.steps}
    assert np.abs(sampled(cut, SAMPLES) - sampled(cut, SAMPLES, precision="fp32")).max() > 0.01


def test_chain_of_one_precision_computes_everything(cut: TinyBundle, tiny: TinyBundle) -> None:
    options = {"precision": "w8a8", "correction": "off"}
    assert ChainChoice(precision="w8a8").chosen(Bundle.open(cut.folder)).networks == ("w8a8",)
    np.testing.assert_array_equal(sampled(cut, 8, **options), sampled(tiny, 8, **options))


def test_cut_that_the_bundle_lacks_is_refused(cut: TinyBundle) -> None:
    with pytest.raises(UsageError, match=r"(?s)w8a8 has no such cut.*skip_9.*skip_0"):
        EngineBank(Bundle.open(cut.folder), 1.5)["w8a8+skip_9"]


def test_network_that_keeps_nothing_is_refused(cut: TinyBundle) -> None:
    whole = "graphs/onnxruntime/w8a8.onnx"
    cut.edit_json("manifest.json", lambda manifest: manifest["precisions"]["w8a8"]["cuts"][CUT].update(full=whole))
    with pytest.raises(BundleError, match="not the network that the manifest describes"):
        network(cut, "w8a8")
