"""LoRAs on engines of TensorRT: refitted, or built again from the changed graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.backends.base import ReweightingBackend
from engines.backends.choice import open_backend
from engines.backends.tensorrt.building import engine_cache
from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import BuildError, build_engine
from engines.backends.tensorrt.device.residency import residency
from engines.backends.tensorrt.flavour import network_flags
from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.networks.engine_bank import EngineBank
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_use import LoraUse
from engines.untrusted.changed_graph import write_changed
from tests.emulated_device.emulated_device import EmulatedDevice
from tests.emulated_device.emulated_device import build as emulated_build
from tests.ptqd_export.models.lora.test_changed_weights import changes, write

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

PRECISIONS = ("fp32", "fp16", "w8a8", "w4a16")


@pytest.fixture(scope="module")
def lora(cross_trt_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = cross_trt_build.context.model.adapter.network
    return write(tmp_path_factory.mktemp("lora") / "lora.safetensors", changes(network, 1))


@pytest.fixture
def bundle(cross_trt_build: Built, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(cross_trt_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("local")))


def out(bundle: Bundle, precision: str, backend: ReweightingBackend, lora: Path, scale: float) -> Array:
    changed = ChangedWeights.of(bundle, [LoraUse(lora, scale)])
    network = EngineBank(bundle, 1.0, batch=2, backend=backend, changed=changed)[precision]
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)
    return np.asarray(network(x, 500.0, np.array([0, 1]))[0])


def backend_of(bundle: Bundle, runtime: str) -> ReweightingBackend:
    backend = open_backend(bundle, runtime, 1)  # type: ignore[arg-type]  # one of the names
    assert isinstance(backend, ReweightingBackend)
    return backend


def engines(bundle: Bundle) -> list[str]:
    folder = bundle.folder / "local/any-machine/engines"
    return sorted(path.name.split("-")[0] for path in folder.iterdir() if path.suffix == ".engine" or path.is_dir())


def test_engines_are_refitted_once_for_each_lora_and_built_once_for_all(bundle: Bundle, lora: Path, emulated: EmulatedDevice) -> None:
    device, host = backend_of(bundle, "tensorrt-rtx"), backend_of(bundle, "onnxruntime")
    for precision in PRECISIONS:
        found: list[Array] = []
        for scale in (0.3, -0.5):
            found.append(out(bundle, precision, device, lora, scale))
            np.testing.assert_array_equal(found[-1], out(bundle, precision, host, lora, scale))
        assert not np.array_equal(found[0], found[1])
    assert engines(bundle) == sorted(PRECISIONS)
    assert emulated.cuda.calls.count("refit_cuda_engine") == 2 * len(PRECISIONS)


def test_engines_that_cannot_be_refitted_are_built_again_and_not_kept(
    bundle: Bundle, lora: Path, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulated.tensorrt.refits, tried = False, list[bool]()

    def noted(spec: BuildSpec, output: Path, **_: object) -> None:
        tried.append(bool(spec.refittable))
        emulated_build(spec, output)

    monkeypatch.setattr(engine_cache, "build_engine", noted)
    device, host = backend_of(bundle, "tensorrt-rtx"), backend_of(bundle, "onnxruntime")
    for scale in (0.3, -0.5):
        np.testing.assert_array_equal(out(bundle, "w4a16", device, lora, scale), out(bundle, "w4a16", host, lora, scale))
    assert tried == [True, False, False]
    assert engines(bundle) == ["w4a16"]


def test_a_builder_that_makes_no_refittable_engine_builds_the_changed_graph(
    bundle: Bundle, lora: Path, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the real builder without a device."""
    del emulated

    def refusing(spec: BuildSpec, output: Path, **_: object) -> None:
        if spec.refittable:
            raise BuildError("TensorRT cannot build the graph.")
        emulated_build(spec, output)

    monkeypatch.setattr(engine_cache, "build_engine", refusing)
    found = out(bundle, "w8a8", backend_of(bundle, "tensorrt-rtx"), lora, 0.3)
    np.testing.assert_array_equal(found, out(bundle, "w8a8", backend_of(bundle, "onnxruntime"), lora, 0.3))
    assert engines(bundle) == []


def test_weights_that_come_back_to_the_device_are_refitted_again(bundle: Bundle, lora: Path, emulated: EmulatedDevice) -> None:
    changed = ChangedWeights.of(bundle, [LoraUse(lora, 0.3)])
    network = EngineBank(bundle, 1.0, batch=2, backend=backend_of(bundle, "tensorrt-rtx"), changed=changed)["w8a8"]
    x = np.random.default_rng(0).standard_normal((2, *bundle.manifest.model.sample_shape), dtype=np.float32)
    before = np.array(network(x, 500.0, np.array([0, 1]))[0])
    residency().make_room(10**12, lambda: 0)
    assert emulated.cuda.calls[-1] == "unload_weights"
    np.testing.assert_array_equal(network(x, 500.0, np.array([0, 1]))[0], before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_real_parser_knows_the_weights_by_their_names_and_takes_the_changed_graph(
    bundle: Bundle, lora: Path, precision: str, tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    graph = bundle.verified_graph(precision)
    constants = ChangedWeights.of(bundle, [LoraUse(lora, 0.3)]).constants(precision, graph)
    (tmp_path / "changed").mkdir()
    changed = write_changed(graph, constants, tmp_path / "changed")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(network_flags(trt))
    assert trt.OnnxParser(network, logger).parse_from_file(str(changed))
    assert [name for name in constants if not network.mark_weights_refittable(name)] == []
    if precision == "w8a8":
        build_engine(BuildSpec(changed, "tensorrt-rtx", BatchProfile(1, 2, 4), compute_capabilities=("SM89",)), tmp_path / "engine")
        assert (tmp_path / "engine").stat().st_size > sum(value.nbytes for value in constants.values())


def test_weights_beyond_the_range_of_16_bits_are_refused(bundle: Bundle, lora: Path) -> None:
    with pytest.raises(UsageError, match=r"exceed the range(.|\n)*float16(.|\n)*65504"):
        ChangedWeights.of(bundle, [LoraUse(lora, 1e6)]).constants("fp16", bundle.verified_graph("fp16"))
