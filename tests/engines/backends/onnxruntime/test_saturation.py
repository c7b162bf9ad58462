"""Integer products are exact: on this processor, whichever it is, and on an emulated one whose products saturate.

Processors without VNNI sum pairs of 8-bit products in 16 bits. Few machines are such today, so the slow proof emulates a Haswell.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.arrays import Float32, Int64
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import PROBE, Mode, saturates
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank

ROOT = Path(__file__).parents[4]
CANNOT_SATURATE = {"session.x64quantprecision": "1"}
LENGTH, COLUMNS = 64, 16

Arrays = Mapping[str, NDArray[Any]]


def extreme_integers() -> tuple[Int64, Int64]:
    """Activations [8, LENGTH] in 0..255 and weights [LENGTH, COLUMNS] in -127..127, every other one the largest."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (8, LENGTH)), rng.integers(-127, 128, (LENGTH, COLUMNS))
    return np.where(rng.random(x.shape) < 0.5, 255, x), np.where(rng.random(w.shape) < 0.5, 127, w)


def product_graph(weight: Int64, path: Path) -> Path:
    """`x @ weight` with scales of 1, as Q/DQ: the output is the integer sum."""
    constants = {"one": np.float32(1), "x_zero": np.uint8(0), "w": weight.astype(np.int8), "w_zero": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "x_zero"], ["x_int"]),
        helper.make_node("DequantizeLinear", ["x_int", "one", "x_zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "one", "w_zero"], ["w_float"]),
        helper.make_node("MatMul", ["x_float", "w_float"], ["out"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", LENGTH])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", COLUMNS])
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", [x], [out], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


# This processor


def test_probe_overflows_sixteen_bits() -> None:
    """Summed in pairs that are cut at 2^15 - 1, the product that should be 64 is about 32."""
    (weight,) = (numpy_helper.to_array(tensor) for tensor in onnx.load(PROBE).graph.initializer if tensor.name == "w")
    pairs = 255 * weight[:, 0].astype(np.int64).reshape(-1, 2).sum(axis=1)
    exact, saturated = (sums.sum() / (255 * 127) for sums in (pairs, pairs.clip(max=2**15 - 1)))
    assert exact == 64
    assert saturated == pytest.approx(32.4, abs=0.1)


def test_probe_is_exact_in_an_engine() -> None:
    out = OnnxRuntimeEngine(PROBE).run({"x": np.ones((1, LENGTH), dtype=np.float32)})
    np.testing.assert_allclose(out, 64, rtol=1e-6)


def test_kernels_that_cannot_saturate_do_not() -> None:
    assert not saturates(CANNOT_SATURATE)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_products_are_those_of_integers(tmp_path: Path, mode: Mode) -> None:
    x, w = extreme_integers()
    out = OnnxRuntimeEngine(product_graph(w, tmp_path / "product.onnx"), mode=mode).run({"x": x.astype(np.float32)})
    np.testing.assert_array_equal(out, x @ w)


# A processor whose products saturate

EMULATOR = "qemu-x86_64"

PROGRAM = """
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.backends.onnxruntime.onnxruntime_session import saturates

folder, found = Path(sys.argv[1]), {"saturates": saturates({})}
for name in ("product", "w8a8"):
    path, feeds = folder / f"{name}.onnx", dict(np.load(folder / f"{name}.npz"))
    for mode in ("fast", "exact"):
        found[f"{name} {mode}"] = OnnxRuntimeEngine(path, mode=mode, threads=1).run(feeds)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found[f"{name} unguarded"],) = session.run(None, feeds)
np.savez(folder / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What an emulated processor makes of the extreme product and of the digits network: in both modes, and with the runtime's defaults."""
    if shutil.which(EMULATOR) is None or platform.machine() != "x86_64":
        pytest.skip(f"needs {EMULATOR} (Debian package qemu-user) on an x86-64 machine")
    folder = tmp_path_factory.mktemp("emulated")
    x, w = extreme_integers()
    product_graph(w, folder / "product.onnx")
    np.savez(folder / "product.npz", x=x.astype(np.float32))
    write_digits(folder)
    command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as archive:
        return dict(archive)


def write_digits(folder: Path) -> None:
    """`w8a8.onnx` of the digits model, and in `w8a8.npz` two states of it, early and late in the chain."""
    from ptqd_export.plan import Plan, PlanFile, load_plan
    from ptqd_export.stages.run_build import run_build

    written = load_plan(ROOT / "tools" / "digits" / "plan.json")
    sections = {"precisions": ["w8a8"], "calibration": {"samples": 8, "batch_size": 8, "activation_samples": 64}}
    plan = Plan.model_validate(written.plan.model_dump(mode="json") | sections | {"correction": {"mode": "none"}})
    run_build(PlanFile(plan, written.folder, folder / "bundle"))
    bundle = Bundle.open(folder / "bundle")
    shutil.copy(bundle.path("graphs/onnxruntime/w8a8.onnx"), folder)
    np.savez(folder / "w8a8.npz", allow_pickle=False, **digits_states(bundle))


def digits_states(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Sampled digits with as much noise as at their timesteps."""
    timestep, numbers = np.array([650, 50]), np.arange(2)
    schedule, noise = bundle.schedule(), NoiseSource(1, bundle.manifest.model.sample_shape)
    clean = Chain(schedule, EngineBank(bundle, schedule.sampler.guidance, batch=2), "fp32").sample(noise, numbers, numbers)
    alpha_bar = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[timestep].reshape(2, 1, 1, 1)
    states = np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * noise.start(numbers + 2)
    return {"sample": states.astype(np.float32), "timestep": timestep.astype(np.float32), "class_labels": numbers}


def snr_db(out: Float32, reference: Float32) -> float:
    noise = np.square(out - reference, dtype=np.float64).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / noise))


@pytest.mark.slow
def test_saturation_is_found_where_it_is(emulated: Arrays) -> None:
    x, w = extreme_integers()
    assert emulated["saturates"]
    assert np.abs(emulated["product unguarded"] - x @ w).max() > 0.1 * (x @ w).max()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_products_are_those_of_integers_where_they_would_saturate(emulated: Arrays, mode: Mode) -> None:
    x, w = extreme_integers()
    np.testing.assert_array_equal(emulated[f"product {mode}"], x @ w)


@pytest.mark.slow
def test_real_network_is_not_hurt_where_products_would_saturate(emulated: Arrays) -> None:
    exact = emulated["w8a8 exact"]
    guarded, unguarded = (snr_db(emulated[f"w8a8 {how}"], exact) for how in ("fast", "unguarded"))
    assert guarded >= 35
    assert guarded > unguarded + 6
