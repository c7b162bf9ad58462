"""A profile is of the kernels that chains run."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from engines.backends.onnxruntime.optimized_graphs import OptimizedGraphs
from ptqd_export.graph.checks.integer_kernels import INTEGER_OPS
from tools.bench import operators
from tools.bench.case import Case
from tools.bench.contestants import ours
from tools.bench.operators import by_operator
from tools.bench.profile import measure_profile


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CALLS", 1)


def optimized_operators(case: Case, precision: str) -> set[str]:
    """The operators of the graph that the build stored as the runtime optimized it, read without the runtime."""
    record = case.bundle.precision(precision)
    assert record.pieces is not None
    graph = OptimizedGraphs.of(case.bundle).find(case.bundle.path(record.pieces.body))
    assert graph is not None
    return {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "w4a8"])
def test_a_profile_lists_the_operators_of_the_optimized_graph(digits_case: Case, precision: str) -> None:
    profile = ours(digits_case, precision).profile()
    assert profile.keys() == optimized_operators(digits_case, precision)
    assert list(profile.values()) == sorted(profile.values(), reverse=True)


def test_a_quantized_precision_is_profiled_in_integers(digits_case: Case) -> None:
    """`Sub` is what the weights' shift looks like before the runtime folds it."""
    told: list[str] = []
    profile = measure_profile(digits_case, ("fp32", "openvino-w8a8", "w8a8"), told.append)
    assert list(profile.rows) == ["fp32", "w8a8"]
    assert told == ["profiling FP32, ONNX Runtime", "profiling ours, W8A8, ONNX Runtime"]
    assert not INTEGER_OPS & profile.rows["fp32"].keys()
    assert "QLinearConv" in profile.rows["w8a8"]
    assert "Sub" not in profile.rows["w8a8"]


def event(node: str, operator: str, microseconds: int, cat: str = "Node") -> dict[str, Any]:
    return {"cat": cat, "name": f"{node}_kernel_time", "dur": microseconds, "args": {"op_name": operator}}


@pytest.mark.parametrize("pieces", [1, 2])
def test_operators_are_added_up_without_the_first_call(pieces: int) -> None:
    call = [event("a", "Conv", 1000), event("b", "Conv", 2000), event("c", "Mul", 500)] * pieces
    warm_up = [{**each, "dur": 9999} for each in call]
    others = [
        event("session", "none", 77, cat="Session"),
        {"cat": "Node", "name": "a_fence_before", "dur": 5, "args": {"op_name": "Conv"}},
    ]
    interrupted = [{**each, "dur": 8888} for each in call]
    assert by_operator([*warm_up, *call, *others, *interrupted, *call], 3) == {"Conv": 3.0 * pieces, "Mul": 0.5 * pieces}
