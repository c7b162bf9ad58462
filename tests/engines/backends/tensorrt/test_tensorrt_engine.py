"""The run time of an engine on a device of host memory, held against the names and argument counts of the installed packages."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends.tensorrt.building.build_spec import BatchProfile
from engines.backends.tensorrt.device.arena import ACTIVATIONS, Arena
from engines.backends.tensorrt.device.cuda import Cuda, cuda_error
from engines.backends.tensorrt.device.device_identity import check_precision
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.backends.tensorrt.tensorrt_backend import EngineSettings, TensorRtBackend
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine, integer_layers
from engines.errors import DeviceLostError, MissingBackendError, PtqdError, UsageError
from tests.emulated_device.emulated_device import EmulatedDevice

Open = Callable[..., TensorRtEngine]
RNG = np.random.default_rng(3)


def feeds(rows: int) -> dict[str, Any]:
    return {
        "sample": RNG.normal(size=(rows, 1, 8, 8)).astype(np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "class_labels": np.arange(rows, dtype=np.int64),
    }


def double(inputs: dict[str, Any]) -> Any:
    return 2 * inputs["sample"] + (0.5 + inputs["class_labels"]).astype(np.float32)[:, None, None, None]


def launches(emulated: EmulatedDevice) -> int:
    return emulated.cuda.calls.count("cudaGraphLaunch")


def test_runs_are_the_networks_whatever_the_batch(open_engine: Open) -> None:
    engine = open_engine("double")
    assert [spec.name for spec in engine.inputs] == ["sample", "timestep", "class_labels"]
    assert (engine.output.name, engine.output.shape, engine.max_rows) == ("out", (1, 8, 8), 8)
    for rows in (2, 2, 2, 5, 2, 5, 5, 8, 2):
        inputs = feeds(rows)
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)


def test_graph_is_captured_after_a_warm_run_one_a_batch(open_engine: Open, emulated: EmulatedDevice) -> None:
    engine = open_engine("double")
    engine.run(feeds(8))
    assert launches(emulated) == 0
    for count, rows in enumerate((8, 8, 8), start=1):
        engine.run(feeds(rows))
        assert (launches(emulated), emulated.cuda.calls.count("cudaGraphInstantiate")) == (count, 1)
    engine.run(feeds(3))
    engine.run(feeds(3))
    assert (launches(emulated), emulated.cuda.calls.count("cudaGraphInstantiate")) == (4, 2)
    engine.run(feeds(8))
    assert (launches(emulated), emulated.cuda.calls.count("cudaGraphInstantiate")) == (5, 2)


def test_contexts_of_the_last_batch_sizes_are_kept_and_no_more(
    open_engine: Open, emulated: EmulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.backends.tensorrt.tensorrt_engine.BATCH_SIZES", 2)
    engine = open_engine("double")
    pinned = []
    for rows in (8, 1, 2, 3, 8, 3, 8, 5, 8, 3):
        inputs = feeds(rows)
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)
        pinned.append(emulated.cuda.calls.count("cudaMallocHost") - emulated.cuda.calls.count("cudaFreeHost"))
    assert max(pinned) == 2 * 4, "three inputs and an output at two sizes"
    assert launches(emulated) == 3, "8 is kept while 3 and 5 come between"


def test_without_graphs_nothing_is_captured(open_engine: Open, emulated: EmulatedDevice) -> None:
    engine = open_engine("double", cuda_graphs=False)
    for _ in range(3):
        inputs = feeds(2)
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)
    assert "cudaStreamBeginCapture" not in emulated.cuda.calls


def test_engines_share_buffers_and_swaps_allocate_nothing(open_engine: Open, arena: Arena, emulated: EmulatedDevice) -> None:
    one, two = open_engine("double"), open_engine("negate")
    one.prepare(8)
    blocks = emulated.cuda.calls.count("cudaMalloc")
    two.prepare(8)
    assert emulated.cuda.calls.count("cudaMalloc") == blocks == 5, "activations, three inputs, one output"
    assert arena.nbytes(ACTIVATIONS) == 800
    pinned = emulated.cuda.calls.count("cudaMallocHost")
    for _ in range(3):
        inputs = feeds(8)
        np.testing.assert_allclose(one.run(inputs), double(inputs), rtol=1e-6)
        np.testing.assert_allclose(two.run(inputs), double(inputs) - 3 * inputs["sample"], rtol=1e-5, atol=1e-6)
    assert (emulated.cuda.calls.count("cudaMalloc"), emulated.cuda.calls.count("cudaMallocHost")) == (blocks, pinned)


def test_every_output_comes_in_its_own_shape_and_type(open_engine: Open) -> None:
    engine = open_engine("shown")
    assert (engine.output.name, [spec.name for spec in engine.outputs]) == ("out", ["out", "inside"])
    for rows in (2, 2, 2, 8, 2):
        inputs = feeds(rows)
        found = engine.run_outputs(inputs)
        np.testing.assert_allclose(found["out"], double(inputs), rtol=1e-6)
        np.testing.assert_array_equal(found["inside"], inputs["sample"].reshape(2 * rows, -1)[:, :4].astype(np.float16))
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)


def test_outputs_are_not_written_again_by_the_next_run(open_engine: Open) -> None:
    engine, inputs = open_engine("shown"), feeds(2)
    found = engine.run_outputs(inputs)
    engine.run_outputs(feeds(2))
    np.testing.assert_allclose(found["out"], double(inputs), rtol=1e-6)


def test_buffers_that_moved_are_bound_again_and_stale_graphs_dropped(open_engine: Open, arena: Arena, emulated: EmulatedDevice) -> None:
    engine = open_engine("double")
    for _ in range(3):
        engine.run(feeds(2))
    before = arena.generation
    engine.prepare(8)
    assert arena.generation > before
    inputs = feeds(2)
    np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)
    assert emulated.cuda.calls.count("cudaGraphInstantiate") == 2


def test_batch_beyond_the_profile_is_an_error_of_usage(open_engine: Open) -> None:
    with pytest.raises(UsageError, match=r"(?s)9 rows.*expected: 1 to 8"):
        open_engine("double").run(feeds(9))


def test_weights_that_do_not_fit_take_turns(open_engine: Open, emulated: EmulatedDevice) -> None:
    emulated.tensorrt.weights_bytes, emulated.cuda.memory_bytes = 10_000, 15_000
    one, two = open_engine("double"), open_engine("negate")
    inputs = feeds(2)
    for _ in range(3):
        np.testing.assert_allclose(one.run(inputs), double(inputs), rtol=1e-6)
        assert [engine.weights_loaded for engine in emulated.tensorrt.engines] == [True, False]
        two.run(inputs)
        assert [engine.weights_loaded for engine in emulated.tensorrt.engines] == [False, True]


def test_flavour_whose_weights_stay_takes_no_calls_that_only_the_other_has(
    emulated: EmulatedDevice, open_engine: Open, arena: Arena, tmp_path: Path
) -> None:
    open_engine("double")
    path = tmp_path / "double.engine"
    classic = replace(FLAVOURS["tensorrt"], import_module=lambda: emulated.tensorrt)
    engine, inputs = TensorRtEngine(path, classic, arena), feeds(2)
    engine.prepare(2)
    emulated.cuda.memory_bytes = emulated.cuda.used_bytes  # nothing is left, and the weights are there
    for _ in range(3):
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)
    called = {name for name, _ in emulated.tensorrt.engines[0].calls}
    assert not called & {"get_engine_stat", "load_weights", "create_runtime_config"}
    emulated.cuda.memory_bytes += 2
    with pytest.raises(PtqdError, match=r"(?s)do not fit on the device.*4 bytes missing.*6 bytes free"):
        TensorRtEngine(path, classic, arena)


def test_weights_too_large_even_alone_are_an_error_that_says_how_much_is_missing(open_engine: Open, emulated: EmulatedDevice) -> None:
    engine = open_engine("double")
    engine.prepare(2)
    emulated.cuda.memory_bytes = emulated.cuda.used_bytes + 400
    with pytest.raises(PtqdError, match=r"(?s)do not fit on the device.*600 bytes missing.*1000 bytes free"):
        engine.run(feeds(2))


def test_engine_that_is_refused_says_how_to_build_it_again(open_engine: Open) -> None:
    with pytest.raises(PtqdError, match=r"(?s)refuses the engine damaged.*ptqd-export engines"):
        open_engine("damaged")


def test_compiled_kernels_are_kept_in_their_file(open_engine: Open, tmp_path: Path) -> None:
    path = tmp_path / "kernels"
    open_engine("double", runtime_cache=path).run(feeds(2))
    assert path.read_bytes() == b"+kernels"
    open_engine("double", runtime_cache=path).run(feeds(2))
    assert path.read_bytes() == b"+kernels+kernels"


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        ("cudaErrorInvalidValue", PtqdError, r"(?s)CUDA reports an error.*cudaMalloc: cudaErrorInvalidValue \(1\)"),
        ("cudaErrorMemoryAllocation", PtqdError, r"(?s)too little free memory.*cudaMalloc: cudaErrorMemoryAllocation \(2\)"),
        ("cudaErrorECCUncorrectable", DeviceLostError, r"(?s)GPU failed.*cudaMalloc: cudaErrorECCUncorrectable \(214\).*run again"),
        ("CUDA_ERROR_ILLEGAL_ADDRESS", DeviceLostError, r"(?s)GPU failed.*cudaMalloc: CUDA_ERROR_ILLEGAL_ADDRESS \(700\).*run again"),
    ],
)
def test_error_of_cuda_names_function_and_code(emulated: EmulatedDevice, status: str, kind: type[PtqdError], message: str) -> None:
    codes = emulated.cuda.real.cudaError_t if status.startswith("cudaError") else pytest.importorskip("cuda.bindings.driver").CUresult
    error = cuda_error("cudaMalloc", getattr(codes, status))
    assert type(error) is kind
    assert re.search(message, str(error))


def test_batch_that_does_not_fit_leaves_the_smaller_ones_as_they_were(open_engine: Open, arena: Arena, emulated: EmulatedDevice) -> None:
    """No block stays at the size that only a part of them could have; the captured graphs of the smaller batch are made again."""
    engine, inputs = open_engine("double"), feeds(2)
    for _ in range(3):
        engine.run(inputs)
    sizes = arena.total_bytes
    emulated.cuda.memory_bytes = emulated.cuda.used_bytes + 1000
    with pytest.raises(PtqdError, match="too little free memory"):
        engine.run(feeds(8))
    assert arena.total_bytes == sizes
    for _ in range(3):
        np.testing.assert_allclose(engine.run(inputs), double(inputs), rtol=1e-6)


def test_weights_make_room_for_a_larger_batch(open_engine: Open, emulated: EmulatedDevice) -> None:
    emulated.tensorrt.weights_bytes, emulated.cuda.memory_bytes = 10_000, 25_000
    engines, inputs = [open_engine("double"), open_engine("negate")], feeds(8)
    for engine in engines:
        engine.run(feeds(2))
    assert emulated.cuda.taken_bytes == 20_000
    np.testing.assert_allclose(engines[0].run(inputs), double(inputs), rtol=1e-6)


def test_memory_is_freed_with_its_owner(open_engine: Open, arena: Arena, emulated: EmulatedDevice) -> None:
    engine = open_engine("double")
    engine.run(feeds(2))
    assert (len(emulated.cuda.of_kind("device")), len(emulated.cuda.of_kind("pinned"))) == (5, 4)
    del engine
    gc.collect()
    assert (len(emulated.cuda.blocks), emulated.cuda.taken_bytes) == (5, 0), "the arena's blocks stay"
    assert arena.total_bytes == emulated.cuda.used_bytes


def test_pinned_memory_is_freed_once_the_device_has_read_it(emulated: EmulatedDevice) -> None:
    """A run that fails leaves copies in its stream, and nobody waits for them."""
    cuda = Cuda()
    stream, memory, source = cuda.stream(), cuda.device_memory(4), cuda.pinned((4,), np.uint8)
    source[:] = 1, 2, 3, 4
    stream.upload(source, memory.address)
    del source
    assert emulated.cuda.calls[-2:] == ["cudaDeviceSynchronize", "cudaFreeHost"]
    assert bytes(emulated.cuda.blocks[memory.address].buffer) == bytes((1, 2, 3, 4))


def test_device_that_is_missing_is_a_missing_backend(emulated: EmulatedDevice) -> None:
    emulated.cuda.devices = 0
    with pytest.raises(MissingBackendError, match="There is no CUDA device"):
        Cuda()


def test_identity_of_the_device(emulated: EmulatedDevice) -> None:
    cuda = Cuda()
    assert (cuda.compute_capability(), cuda.driver_version(), cuda.device_name()) == ("8.9", "13000", "Host memory")
    stream = cuda.stream()
    assert stream.milliseconds(stream.event(), stream.event()) == 1.5
    assert emulated.cuda.calls.count("cudaEventDestroy") == 2


def test_integer_layers_are_those_with_int8_inputs() -> None:
    information = (
        '{"Layers": [{"Name": "conv", "Inputs": [{"Format/Datatype": "Int8 NC/32HW32"}]},'
        ' {"Name": "add", "Inputs": [{"Format/Datatype": "Half"}]}, "reformat"]}'
    )
    assert list(integer_layers(information)) == ["conv"]


def test_device_that_is_too_old_for_a_precision_is_told(emulated: EmulatedDevice) -> None:
    cuda = Cuda()
    check_precision("fp8", cuda)
    emulated.cuda.capability = (8, 6)
    check_precision("w8a8", cuda)
    with pytest.raises(MissingBackendError, match=r"(?s)cannot run fp8.*compute capability 8\.6.*8\.9 or newer.*such as w8a8"):
        check_precision("fp8", cuda)
    emulated.cuda.capability = (10, 0)
    check_precision("fp8", cuda)


@pytest.mark.parametrize("graph", ["fp8", "fp8.group_1", "fp8.skip_1.full", "fp8.832x1216"])
def test_device_that_is_too_old_is_told_for_every_graph_of_a_precision(emulated: EmulatedDevice, tmp_path: Path, graph: str) -> None:
    emulated.cuda.capability = (8, 6)
    backend = TensorRtBackend(EngineSettings("tensorrt-rtx", BatchProfile(1, 1, 1)), tmp_path)
    with pytest.raises(MissingBackendError, match="cannot run fp8"):
        backend.open(tmp_path / f"{graph}.onnx", 1)
