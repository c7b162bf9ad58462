"""Whole commands on the emulated device end with the very samples of ONNX Runtime, also after memory ran out or the device was lost."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.arrays import Float32
from engines.backends.tensorrt.tensorrt_backend import TensorRtBackend
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine
from ptqd_export.commands.engines_command import build_engines
from tests.conftest import SIZE, TinyBundle
from tests.emulated_device.emulated_device import EmulatedDevice
from tests.engines.apps.serve.conftest import add_size
from tests.engines.apps.serve.in_process import Server, pictures
from tests.engines.cut_bundle import cut_bundle
from tests.engines.ptqd_run import names, sample, states

TARGET = {"name": "tensorrt-rtx", "high_precision": "fp32", "profile": {"min": 1, "opt": 2, "max": 16}, "workspace_gib": None}
NUM = 3
WEIGHTS = 20_000
"""Bytes of an engine's weights where memory is short: more than all buffers together."""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime runs a whole batch in one call, as it does inside the emulated engines."""
    monkeypatch.setattr("engines.backends.onnxruntime.onnxruntime_backend.cores", lambda: 1)


def with_group(bundle: TinyBundle) -> TinyBundle:
    """Let the last steps of w4a8 run on another graph."""
    name = "graphs/onnxruntime/w4a8.group_1.onnx"
    shutil.copyfile(bundle.folder / "graphs/onnxruntime/fp32.onnx", bundle.folder / name)
    bundle.rehash(name)
    group = {"below": 600, "graph": name, "pieces": None}
    bundle.edit_json("manifest.json", lambda manifest: manifest["precisions"]["w4a8"].update(groups=[group]))
    return bundle


@pytest.fixture
def on_device(
    emulated: EmulatedDevice, own_tiny: TinyBundle, tiny_decoded: TinyBundle, tiny_unconditional: TinyBundle, tmp_path: Path
) -> Callable[[str], TinyBundle]:
    """A bundle of a kind, with its engines."""
    del emulated
    kinds: dict[str, Callable[[], TinyBundle]] = {
        "guided": lambda: own_tiny,
        "cut": lambda: cut_bundle(own_tiny),
        "groups": lambda: with_group(own_tiny),
        "sizes": lambda: add_size(own_tiny),
        "unconditional": lambda: tiny_unconditional,
        "decoded": lambda: replace(tiny_decoded, folder=Path(shutil.copytree(tiny_decoded.folder, tmp_path / "decoded"))),
    }

    def make(kind: str) -> TinyBundle:
        bundle = kinds[kind]()
        bundle.edit_json("manifest.json", lambda manifest: manifest.update(target=TARGET))
        build_engines(bundle.folder)
        return bundle

    return make


def ended(bundle: TinyBundle, output: Path, *options: object) -> Float32:
    return states(bundle, output, "--batch-size", 2, "--overwrite", *options, num=NUM)


@pytest.mark.parametrize("kind", ["guided", "cut", "groups", "sizes", "unconditional", "decoded"])
def test_samples_are_those_of_onnxruntime(on_device: Callable[[str], TinyBundle], tmp_path: Path, kind: str) -> None:
    """Precisions change along the chains, and the last batch is smaller than the others."""
    bundle, more = on_device(kind), ("--size", f"{SIZE + 4}x{SIZE}") if kind == "sizes" else ()
    expected = ended(bundle, tmp_path / "out", "--runtime", "onnxruntime", *more)
    for update in ("host", "device"):
        np.testing.assert_array_equal(ended(bundle, tmp_path / "out", "--update", update, *more), expected)


@pytest.mark.parametrize("update", ["host", "device"])
def test_networks_and_their_buffers_are_freed_before_the_decoder_opens(
    on_device: Callable[[str], TinyBundle], emulated: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    bundle, networks, left = on_device("decoded"), weakref.WeakSet[TensorRtEngine](), list[tuple[int, int]]()
    own_open = TensorRtBackend.open

    def noted(backend: TensorRtBackend, graph: Path, rows: int) -> TensorRtEngine:
        if graph.name == "decoder.onnx":
            left.append((len(networks), len(emulated.cuda.blocks)))
            return own_open(backend, graph, rows)
        networks.add(engine := own_open(backend, graph, rows))
        return engine

    monkeypatch.setattr(TensorRtBackend, "open", noted)
    gc.disable()
    try:
        result = sample(bundle, tmp_path / "out", "--update", update, "--batch-size", NUM, num=NUM)
    finally:
        gc.enable()
    assert (result.exit_code, left) == (0, [(0, 0)])


def test_a_decoder_that_was_not_built_is_noticed_before_earlier_pictures_go(on_device: Callable[[str], TinyBundle], tmp_path: Path) -> None:
    bundle, output = on_device("decoded"), tmp_path / "out"
    assert sample(bundle, output, num=1).exit_code == 0
    before = names(output)
    for engine in (bundle.folder / "local").rglob("decoder-*.engine"):
        engine.unlink()
    result = sample(bundle, output, "--overwrite", num=1)
    assert (result.exit_code, names(output)) == (2, before), result.output
    assert "There is no engine of this graph" in result.stderr
    assert "ptqd-export engines" in result.stderr


def test_chains_from_an_image_are_those_of_onnxruntime(on_device: Callable[[str], TinyBundle], tmp_path: Path) -> None:
    bundle, image = on_device("guided"), tmp_path / "image.png"
    Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)).save(image)
    late = ("--image", image, "--strength", 0.5)
    expected = ended(bundle, tmp_path / "out", "--runtime", "onnxruntime", *late)
    for update in ("host", "device"):
        np.testing.assert_array_equal(ended(bundle, tmp_path / "out", "--update", update, *late), expected)


@pytest.mark.parametrize("update", ["host", "device"])
def test_memory_that_runs_out_is_one_error_and_leaks_nothing(
    on_device: Callable[[str], TinyBundle], emulated: EmulatedDevice, tmp_path: Path, update: str
) -> None:
    """Networks and decoder take turns: memory for the buffers and the weights of one engine is enough."""
    bundle, errors = on_device("decoded"), set[str]()
    emulated.tensorrt.weights_bytes = WEIGHTS
    expected = ended(bundle, tmp_path / "out", "--runtime", "onnxruntime")
    for memory in range(2000, 4 * WEIGHTS, 12_000):
        emulated.cuda.memory_bytes = memory
        options = ("--update", update, "--format", "npz", "--batch-size", 2, "--overwrite")
        result = sample(bundle, tmp_path / "short", *options, num=NUM)
        gc.collect()
        assert (emulated.cuda.blocks, emulated.cuda.taken_bytes) == ({}, 0)
        if result.exit_code == 0:
            break
        assert result.exit_code == 1
        assert not (tmp_path / "short").exists() or names(tmp_path / "short") == []
        errors.add(result.stderr.splitlines()[0])
    else:
        pytest.fail("all memory was too little")
    assert memory < 2 * WEIGHTS + 30_000
    np.testing.assert_array_equal(ended(bundle, tmp_path / "out", "--update", update), expected)
    assert "error: The GPU has too little free memory." in errors
    assert any("do not fit on the device" in error for error in errors)
    assert not any("bug" in error for error in errors)


CALLS = {
    "host": ("deserialize_cuda_engine", "cudaMalloc", "cudaMallocHost", "create_execution_context", "load_weights", "execute_async_v3",
             "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphLaunch"),
    "device": ("cuModuleLoadData", "cuLaunchKernel", "cudaEventRecord", "cudaEventSynchronize", "cudaGraphInstantiate"),
}  # fmt: skip


@pytest.mark.parametrize("update", CALLS)
def test_device_that_is_lost_in_mid_chain_is_one_error_and_a_new_process_starts_over(
    on_device: Callable[[str], TinyBundle], emulated: EmulatedDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    bundle, lost = on_device("guided"), emulated
    expected = ended(bundle, tmp_path / "out", "--runtime", "onnxruntime")
    np.testing.assert_array_equal(ended(bundle, tmp_path / "out", "--update", update), expected)
    counts = Counter(emulated.cuda.calls)
    for function in CALLS[update]:
        lost.cuda.lose(function, call=max(1, counts[function] // 2))
        result = sample(bundle, tmp_path / "lost", "--update", update, "--batch-size", 2, num=NUM)
        assert lost.cuda.lost, function
        assert result.exit_code == 1
        assert result.stderr.startswith("error: The GPU failed during the run.\n  found: "), function
        assert "CUDA_ERROR_LAUNCH_FAILED" in result.stderr or "cudaErrorLaunchFailure" in result.stderr
        assert result.stderr.count("error:") == 1
        assert not (tmp_path / "lost" / "samples.json").exists()
        shutil.rmtree(tmp_path / "lost", ignore_errors=True)
        gc.collect()
        lost = lost.restarted(monkeypatch)
    np.testing.assert_array_equal(ended(bundle, tmp_path / "lost", "--update", update), expected)


def test_server_goes_on_after_a_batch_that_was_too_large(on_device: Callable[[str], TinyBundle], emulated: EmulatedDevice) -> None:
    bundle = on_device("decoded")
    server, one, four = Server(bundle.folder, batch=1), {"seed": 5, "class": 1}, {"seed": 5, "class": 1, "num": 4}
    expected = server.pictures(four)
    server = Server(bundle.folder, batch=1)
    alone = server.pictures(one)
    emulated.cuda.memory_bytes = emulated.cuda.used_bytes - emulated.cuda.taken_bytes + 1100  # weights of one engine
    (answer,) = server.answers(four)
    assert answer.status == 500
    assert b"The GPU has too little free memory." in answer.content
    assert server.pictures(one) == alone == expected[:1]
    emulated.cuda.memory_bytes = 10**9
    assert server.pictures(four) == expected


def test_server_answers_nothing_on_a_lost_device_and_a_new_replica_does(
    on_device: Callable[[str], TinyBundle], emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica ends itself at this error, see `engines.cluster.lost_device`."""
    bundle = on_device("guided")
    server, asked = Server(bundle.folder), {"seed": 5, "class": 1, "num": 2}
    expected = server.pictures(asked)
    emulated.cuda.lose("cudaGraphLaunch")
    for _ in range(2):
        (answer,) = server.answers(asked)
        assert answer.status == 500
        assert b"The GPU failed during the run." in answer.content
    emulated.restarted(monkeypatch)
    assert pictures(Server(bundle.folder).answers(asked)[0]) == expected
