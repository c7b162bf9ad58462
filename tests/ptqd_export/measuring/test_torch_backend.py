"""Graphs in PyTorch, against ONNX Runtime's exact mode on the same graphs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engines.backends.base import KEPT, Engine
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.errors import PtqdError
from ptqd_export.graph.checks.verify import snr_db
from ptqd_export.graph.stand_in_backend import StandInBackend
from ptqd_export.measuring.torch_backend import TorchBackend, TorchEngine

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

ROWS = 6
AS_FLOATS = 100.0
"""dB between two orders of float32 sums, where no value falls into another bin."""

APART = 5.0
"""dB by which a graph agrees better with itself than with full precision, where sums in another order put values into other bins."""


def feeds(engine: Engine, rows: int = ROWS) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for spec in engine.inputs:
        values = rng.integers(0, 3, (rows, *spec.shape)) if spec.dtype == np.int64 else rng.standard_normal((rows, *spec.shape))
        made[spec.name] = np.full(rows, 400.0, np.float32) if spec.name == "timestep" else values.astype(spec.dtype)
    return made


def graphs(built: Built, precisions: tuple[str, ...]) -> Iterator[Path]:
    """The graphs in float32; in float16, values near a tie of 8-bit floats fall into other bins."""
    for precision in precisions:
        float32 = [] if precision == "fp32" else [*built.stage(f"quantize-{precision}").glob(f"{precision}-fp32.onnx")]
        yield float32[0] if float32 else built.graph(precision)


@pytest.mark.parametrize(
    ("name", "precisions"),
    [
        ("class_build", ("fp32", "w8a8", "w4a8", "w4a4", "w3a8")),
        ("cross_build", ("fp32", "w8a8", "w4a8", "w4a16")),
        ("cross_trt_build", ("fp8", "w8a8", "w4a4", "w4a16")),
    ],
)
def test_every_kind_of_graph_computes_what_it_means(name: str, precisions: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(name)
    full = OnnxRuntimeBackend(threads=1, mode="exact").open(built.graph("fp32"), ROWS)
    reference = full.run(feeds(full))
    for path in graphs(built, precisions):
        exact, torched = OnnxRuntimeBackend(threads=1, mode="exact").open(path, ROWS), TorchBackend().open(path, ROWS)
        assert torched.inputs == exact.inputs
        assert torched.output.shape == exact.output.shape
        expected = exact.run(feeds(exact))
        agreement, noise = snr_db(expected, torched.run(feeds(exact))), snr_db(reference, expected)
        least = AS_FLOATS if path.stem == "fp32" else min(noise, 60.0) + APART
        assert agreement > least, f"{path.stem}: {agreement:.1f} dB, with noise at {noise:.1f} dB"


def test_a_stand_in_of_bfloat16_rounds_every_result(class_build: Built, tmp_path: Path) -> None:
    from onnx_ir import load

    from ptqd_export.graph.graph_files import save_graph
    from ptqd_export.graph.passes.half_precision import ToHalfPrecision

    model = load(class_build.graph("fp32"))
    ToHalfPrecision("bf16")(model)
    path = tmp_path / "fp32.onnx"
    save_graph(model, path)
    exact, torched = (StandInBackend(backend).open(path, ROWS) for backend in (OnnxRuntimeBackend(threads=1, mode="exact"), TorchBackend()))
    found, expected = torched.run(feeds(exact)), exact.run(feeds(exact))
    full = TorchBackend().open(class_build.graph("fp32"), ROWS).run(feeds(exact))
    assert snr_db(expected, found) > snr_db(full, found)
    assert snr_db(full, found) < 60


@pytest.fixture
def engine(class_build: Built) -> TorchEngine:
    return TorchBackend().open(class_build.graph("w8a8"), ROWS)


def test_a_call_that_does_not_fit_runs_in_halves(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, rows, infer = engine.run(feeds(engine)), list[int](), engine._infer

    def with_room_for_two(given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        rows.append(len(given["timestep"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return infer(given)

    monkeypatch.setattr(engine, "_infer", with_room_for_two)
    np.testing.assert_allclose(engine.run(feeds(engine)), whole, atol=0.1)
    assert rows == [6, 3, 1, 1, 1, 1, 1, 1]
    engine.run(feeds(engine))
    assert rows[8:] == [1] * 6


def test_a_sample_that_does_not_fit_is_an_error(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_room(_given: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(engine, "_infer", without_room)
    with pytest.raises(PtqdError, match="does not fit the memory of cpu"):
        engine.run(feeds(engine, 1))


def test_features_to_keep_come_out_beside_the_output(tmp_path: Path) -> None:
    x, kept, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("sample", KEPT, "out"))
    nodes = [
        helper.make_node("Mul", ["sample", "sample"], ["squared"]),
        helper.make_node("Identity", ["squared"], [KEPT]),
        helper.make_node("Neg", ["squared"], ["out"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "kept", [x], [out, kept]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.save(model, tmp_path / "kept.onnx")
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    engine = TorchBackend().open(tmp_path / "kept.onnx", 2)
    found, features = engine.run_keeping({"sample": given})
    np.testing.assert_array_equal(found, -(given**2))
    np.testing.assert_array_equal(features, given**2)
    np.testing.assert_array_equal(engine.run({"sample": given}), -(given**2))
