"""An engine that is not the one that was measured does not get into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import numpy_helper

from engines.apps.compare.engine_check import check_engines
from engines.errors import PtqdError
from ptqd_export.stages.build_context import FULL_PRECISION
from ptqd_export.stages.fit.walk_check import _check, check_fitted
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def double(graph: Path, layer: str) -> None:
    """Double the weight scale of a layer, in place."""
    model = onnx.load(graph)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == f"{layer}.weight.scale")
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, graph)


def stages(built: Built) -> dict[str, Path]:
    kinds = {precision.name: "convert" if precision.weight_bits is None else "quantize" for precision in built.context.engine_precisions}
    return {FULL_PRECISION: built.stage("trace"), **{name: built.stage(f"{kind}-{name}") for name, kind in kinds.items()}}


@pytest.mark.parametrize("name", ["class_build", "cross_build", "class_trt_build", "cross_trt_build"])
def test_engines_of_a_build_measure_as_before(name: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(name)
    assert check_engines(_check(built.context, stages(built), built.stage("statistics"))) < 0.1


def test_progress_is_told_to_the_end(class_build: Built) -> None:
    reported = Recorder()
    check_fitted(class_build.context, stages(class_build), class_build.stage("statistics"), Path("unused"), reported)
    total = 2 * (3 + 4 * 5)  # batches of 8 of the 16 samples: three steps of the chain, and five networks at each of the four steps
    assert reported.told == [("advance", done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("layer", ["mid_block.resnets.0.conv1", "conv_out", "time_embedding.linear_1"])
def test_engine_that_changed_after_the_statistics_leaves_no_bundle(small_build: Built, tmp_path: Path, layer: str) -> None:
    plan_file = small_build.resumed_in(tmp_path / "bundle")
    (stage,) = (tmp_path / "bundle/local/stages").glob("quantize-w8a8-*")
    double(stage / "w8a8.onnx", layer)
    with pytest.raises(PtqdError, match="The engine of w8a8 is not the one that the statistics were measured on") as error:
        run_build(plan_file)
    stored = small_build.json("statistics/onnxruntime/w8a8.json")["steps"][0]["snr_db"]
    assert "dB at step 0" in str(error.value)
    assert f"expected: {stored:.2f} dB, within 0.25 dB" in str(error.value)
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["local"]
