"""Make the graphs of ONNX Runtime's own tool: `quantize_static`, calibrated on states of full-precision chains."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.networks.engine_bank import EngineBank
from tools.bench.case import CALIBRATION_SEED, FULL_PRECISION, Case
from tools.bench.contestants import STATIC, STATIC_WEIGHTED

WEIGHTED = ("Conv", "Gemm", "MatMul")
OPERATORS: Mapping[str, tuple[str, ...] | None] = {STATIC: None, STATIC_WEIGHTED: WEIGHTED}
"""Kinds of operators to quantize, by file; None leaves the choice to the tool."""


def make_static_graphs(case: Case) -> None:
    """Write both graphs to the case's folder; they are calibrated on `case.batch` samples, each at the case's steps."""
    feeds = list(_calibration_feeds(case))
    graph = case.bundle.verified_graph(FULL_PRECISION)
    for name, operators in OPERATORS.items():
        _quantize(graph, case.folder / name, feeds, operators)


def _calibration_feeds(case: Case) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the network's inputs along full-precision chains; their samples are not among those that the benchmark compares."""
    bank = EngineBank(case.bundle, case.schedule.sampler.guidance, batch=case.batch, whole=True)
    visited = case.visited(bank, CALIBRATION_SEED)
    for x, timestep in zip(visited.states, visited.timesteps, strict=True):
        yield bank[FULL_PRECISION].feeds(x, timestep, visited.rows)


def _quantize(graph: Path, path: Path, feeds: list[dict[str, NDArray[Any]]], operators: tuple[str, ...] | None) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(graph, prepared, skip_symbolic_shape=True, save_as_external_data=True)  # like the graph's own weights
        quantize_static(
            prepared,
            path,
            Reader(),
            op_types_to_quantize=None if operators is None else list(operators),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress that the tool prints and logs."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
