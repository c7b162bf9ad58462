"""A fault that was planted in one layer is found in that layer."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from engines.backends.onnxruntime.onnxruntime_backend import run_outputs
from engines.backends.tensorrt import layer_run
from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.backends.tensorrt.building.engine_builder import build_engine
from engines.backends.tensorrt.tensorrt_engine import TensorRtEngine
from engines.bundle.contract import sealed
from engines.errors import MissingBackendError
from engines.host.files import sha256
from ptqd_export.cli import main
from ptqd_export.commands.bisect import BisectRequest, BisectResult, LayerFigures, bisect_bundle, compare_layers
from ptqd_export.commands.bisect_report import print_report
from tests.narrow_terminal import WIDTHS, check_whole, narrow

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built, Feeds

FAULTY = "down_blocks.1.resnets.0.conv2"
GRAPH = "graphs/onnxruntime/w8a8.onnx"


def plant(graph: Path, path: Path, layer: str = FAULTY) -> Path:
    """The graph with the weight scale of one layer doubled."""
    model = onnx.load(graph)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == f"{layer}.weight.scale")
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)
    return path


@pytest.fixture
def damaged(class_build: Built, tmp_path: Path) -> Path:
    """A copy of the bundle whose w8a8 is wrong in one layer."""
    folder = Path(shutil.copytree(class_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("local")))
    path = plant(folder / GRAPH, folder / GRAPH)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][GRAPH] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return folder


def find(bundle: Path, **request: Any) -> BisectResult:
    return bisect_bundle(BisectRequest(bundle, "w8a8", **request))


def bisect(bundle: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["bisect", str(bundle), *map(str, options)])


def broken_runtime(
    layer: str, change: Callable[[Array], Array], right: Callable[[Path, Feeds], dict[str, Array]] = run_outputs
) -> Callable[[Path, Feeds], dict[str, Array]]:
    """ONNX Runtime whose kernel of one layer has a fault, seen by that layer and all behind it."""

    def run(graph: Path, feeds: Feeds) -> dict[str, Array]:
        found = right(graph, feeds)
        names = list(found)
        behind = [*names[names.index(f"shown.{layer}") :], names[0]]
        return {name: change(value) if name in behind else value for name, value in found.items()}

    return run


def test_badly_quantized_layer_is_named(damaged: Path) -> None:
    found = find(damaged, against="fp32")
    assert found.first == FAULTY
    place = [layer.layer for layer in found.layers].index(FAULTY)
    assert min(layer.snr_db or np.inf for layer in found.layers[:place]) > 20
    assert found.layers[place].snr_db == pytest.approx(0, abs=1)  # the difference of a doubled output is as large as the output


def test_fault_of_the_graph_is_none_of_the_runtime(damaged: Path) -> None:
    assert find(damaged, against="oracle").first is None


def test_fault_of_the_runtime_is_named(class_build: Built) -> None:
    run = broken_runtime(FAULTY, lambda value: np.clip(value, -0.1, 0.1))
    assert bisect_bundle(BisectRequest(class_build.folder, "w8a8"), run).first == FAULTY


@pytest.mark.parametrize("precision", ["w8a8", "w4a4"])
def test_right_engine_departs_nowhere(class_build: Built, precision: str) -> None:
    found = bisect_bundle(BisectRequest(class_build.folder, precision, step=2))
    assert found.first is None
    assert found.only_here == ()
    assert [layer.layer for layer in found.layers[-2:]] == ["conv_out", "out"]
    assert found.layers[0].layer == "time_embedding.linear_1"
    schedule = class_build.json("schedules/default.json")
    assert found.timestep == schedule["steps"][2]["timestep"]


def test_threshold_decides_what_departs(class_build: Built) -> None:
    found = find(class_build.folder, against="fp32", min_snr_db=-50.0)
    assert found.first is None
    worst = min(layer.snr_db for layer in found.layers if layer.snr_db is not None)
    again = find(class_build.folder, against="fp32", min_snr_db=worst + 0.01)
    below = [layer.layer for layer in again.layers if layer.snr_db is not None and layer.snr_db < worst + 0.01]
    assert (again.first, set(below) <= {"conv_out", "out"}) == (below[0], True)  # the output is that of the last layer


TWO_LAYERS = """
    g (float[1,1,2,2] x) => (float[1,1,2,2] out)
    <float[1,1,1,1] a = {2}, float[1,1,1,1] here = {0.5}>
    { middle = Conv (x, a) last = Conv (middle, here) out = Relu (last) }"""


def test_figures_are_those_of_the_outputs_in_the_order_of_the_graph(parse_graph: Callable[[str], ir.Model], tmp_path: Path) -> None:
    """By a runtime that gives its outputs in another order, with a known error."""
    e = {"out": np.ones(4, np.float32), "shown.a": np.full(4, 2, np.float32), "shown.here": np.ones(1, np.float32)}
    q = {"out": np.full(4, 0.9, np.float32), "shown.a": np.full(4, 2, np.float32), "shown.here": np.ones(1, np.float32)}
    without = {name: value for name, value in e.items() if name != "shown.here"}
    q = dict(reversed(q.items()))
    model, graph = parse_graph(TWO_LAYERS), tmp_path / "graph.onnx"
    for layer in ("a", "here"):
        model.graph.initializers[layer].name = f"{layer}.weight"
    ir.save(model, graph)
    layers, only_here = compare_layers(graph, lambda *_: q, graph, lambda *_: without, {})
    assert [(layer.layer, layer.snr_db) for layer in layers] == [("a", None), ("out", pytest.approx(20, abs=1e-5))]
    assert layers[1].max_absolute_error == pytest.approx(0.1)
    assert only_here == ("here",)


def test_command_prints_and_writes(damaged: Path, tmp_path: Path) -> None:
    result = bisect(damaged, "--precision", "w8a8", "--against", "fp32", "--worst", 1, "--json", tmp_path / "layers.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"first below 10 dB: {FAULTY}\n" in result.stdout
    assert "w8a8 against full precision: step 0 (timestep 750)" in result.stdout
    assert result.stdout.count(" of 2") <= 2  # the worst and the first
    content = json.loads((tmp_path / "layers.json").read_text())
    expected = find(damaged, against="fp32")
    assert (content["first"], len(content["layers"])) == (FAULTY, len(expected.layers))
    assert content["schema_version"] == 1
    for layer, other in zip(content["layers"], expected.layers, strict=True):
        assert layer["layer"] == other.layer
        assert (layer["snr_db"] or 200) == pytest.approx(other.snr_db or 200, abs=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "w2a8"], "The bundle has no such engine.\n  found:    w2a8"),
        (["--precision", "fp32"], "The bundle has no such engine."),
        (["--precision", "w8a8", "--step", 4], "The schedule has fewer steps.\n  found:    --step 4\n  expected: 0 to 3"),
        (["--precision", "w8a8", "--schedule", "none"], "The bundle has no such schedule."),
    ],
)
def test_wrong_requests_are_errors_of_usage(class_build: Built, options: list[object], message: str) -> None:
    result = bisect(class_build.folder, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_graphs_of_another_runtime_are_held_against_full_precision_alone_on_the_cpu(class_trt_build: Built) -> None:
    refused = bisect(class_trt_build.folder, "--precision", "w8a8", "--runtime", "onnxruntime")
    assert refused.exit_code == 2
    assert "runs this bundle's graphs as they are written" in refused.stderr
    found = find(class_trt_build.folder, against="fp32", min_snr_db=0.0, runtime="onnxruntime")
    assert found.first is None
    assert all(layer.snr_db is not None and layer.snr_db > 20 for layer in found.layers)


def test_layers_of_openvino_are_looked_into(class_build: Built) -> None:
    pytest.importorskip("openvino")
    found = find(class_build.folder, min_snr_db=15.0, runtime="openvino")  # it rounds more values near a tie the other way
    assert found.first is None
    assert {layer.layer for layer in found.layers} == {layer.layer for layer in find(class_build.folder).layers}


class Device:
    """In place of CUDA and of an opened engine: the engine must have been built, and its graph runs on ONNX Runtime with a fault."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faulty: str) -> None:
        self.engines: list[tuple[int, int]] = []
        self._graph = Path()
        self._run = broken_runtime(faulty, lambda value: np.clip(value, -0.1, 0.1), partial(run_outputs, mode="exact"))
        build = build_engine

        def build_and_keep(spec: BuildSpec, output: Path, **options: Any) -> None:
            self._graph = output.parents[1] / "kept.onnx"
            build(spec, output, **options)
            shutil.copy(spec.graph, self._graph)
            self.engines.append((output.stat().st_size, spec.profile.max))

        for name, fake in {"Cuda": object, "Arena": lambda cuda: cuda, "build_engine": build_and_keep, "TensorRtEngine": self.open}.items():
            monkeypatch.setattr(layer_run, name, fake)

    def open(self, *arguments: Any) -> Any:
        inspect.signature(TensorRtEngine).bind(*arguments)
        engine = create_autospec(TensorRtEngine, instance=True)
        engine.run_outputs.side_effect = lambda feeds: self._run(self._graph, feeds)
        return engine


def test_engine_of_tensorrt_is_built_with_its_layers_as_outputs_and_the_faulty_one_is_named(
    class_trt_build: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    device = Device(monkeypatch, FAULTY)
    found = find(class_trt_build.folder, runtime="tensorrt-rtx")
    assert found.first == FAULTY
    assert all(layer.snr_db is None for layer in found.layers[: [layer.layer for layer in found.layers].index(FAULTY)])
    ((size, rows),) = device.engines
    assert size > 10_000
    assert rows == 4 * (2 if class_trt_build.context.guided else 1)


def test_engine_of_tensorrt_takes_a_device(class_trt_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Any) -> None:
        raise MissingBackendError("There is no CUDA device.")

    monkeypatch.setattr("engines.backends.tensorrt.device.cuda.Cuda.__init__", absent)
    result = bisect(class_trt_build.folder, "--precision", "w8a8")
    assert result.exit_code == 3, result.stderr
    assert "There is no CUDA device" in result.stderr


def test_half_precision_graphs_show_their_layers_too(cross_trt_build: Built) -> None:
    found = find(cross_trt_build.folder, against="fp32", min_snr_db=0.0, runtime="onnxruntime")
    assert {"conv_in", "conv_out"} <= {layer.layer for layer in found.layers}
    assert found.only_here == ()


@pytest.mark.parametrize("width", WIDTHS)
def test_table_is_whole_in_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    narrow(monkeypatch, width)
    layer = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0"
    print_report(BisectResult("w8a8", "oracle", 0, 980.0, 4, 0, 25.0, None, (LayerFigures(layer, 32.1, 0.00123),), ()), 10)
    out = capsys.readouterr().out
    check_whole(out, width, ("place", "layer", "SNR", "largest", "error", "1 of 1", "32.10 dB", "0.00123"))
    assert "".join(line.split("│")[2].strip() for line in out.splitlines() if line[0] == "│") == layer


def test_damaged_file_is_told(class_build: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("local")))
    plant(folder / GRAPH, folder / GRAPH)
    result = bisect(folder, "--precision", "w8a8")
    assert result.exit_code == 1
    assert "A file of the bundle was changed or damaged." in result.stderr


def test_other_precisions_of_the_damaged_bundle_are_right(damaged: Path) -> None:
    assert bisect_bundle(replace(BisectRequest(damaged, "w8a8"), precision="w4a8", against="fp32", min_snr_db=0.0)).first is None
