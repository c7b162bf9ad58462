"""A paired figure of a network in `ptqd-run evaluate`: a stand-in that gives the mean absolute difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from engines.apps.evaluate.metrics.confidence import BLOCKS
from engines.cli import main

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.engines.apps.evaluate.conftest import TinyExtractor

NUM = 60


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "C", "H", "W"]) for name in ("images", "others")]
    nodes = [
        helper.make_node("Sub", ["images", "others"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["absolute"]),
        helper.make_node("ReduceMean", ["absolute", "axes"], ["distance"], keepdims=0),
    ]
    out = helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph(nodes, "lpips", inputs, [out], [numpy_helper.from_array(np.array([1, 2, 3]), "axes")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"extractor": "stand-in", "least_side": "8"})
    onnx.save(model, tmp_path / "lpips.onnx")
    return tmp_path / "lpips.onnx"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_figure_is_the_mean_over_pairs_with_an_interval(tiny: TinyBundle, stand_in: Path, tmp_path: Path) -> None:
    states: dict[str, Any] = {}
    for precision, correction in (("fp32", "off"), ("w4a8", "on")):
        how = ["--seed", 3, "--precision", precision, "--correction", correction, "--format", "npz", "--output", tmp_path / precision]
        assert run("sample", tiny.folder, "--num", NUM, *how).exit_code == 0
        with np.load(tmp_path / precision / "samples.npz") as archive:
            states[precision] = archive["samples"].clip(-1, 1)
    done = run(
        "evaluate", tiny.folder, "--num", NUM, "--seed", 3, "--precision", "w4a8", "--lpips", stand_in, "--json", tmp_path / "out.json"
    )
    assert (done.exit_code, done.stderr) == (0, "")
    figure = json.loads((tmp_path / "out.json").read_text())["figures"]["lpips"]
    distances = np.abs(states["w4a8"] - states["fp32"]).mean(axis=(1, 2, 3), dtype=np.float64)
    assert (figure["full_precision"], figure["difference"], figure["extractor"]) == (None, None, "stand-in")
    assert figure["quantized"]["mean"] == pytest.approx(distances.mean(), rel=1e-4)
    without = [np.delete(distances, slice(6 * block, 6 * block + 6)).mean() for block in range(BLOCKS)]
    low, high = figure["quantized"]["interval"]
    assert (high - low) / 2 == pytest.approx(2.262 * np.sqrt(9 * np.var(without)), rel=1e-3)
    assert "lpips (stand-in)" in done.stdout


def test_what_does_not_fit_is_one_message(
    tiny: TinyBundle, network: TinyExtractor, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.chain.sampling.Chain.sample", lambda *_: pytest.fail("samples were taken"))
    model = onnx.load(stand_in)
    helper.set_model_props(model, {"extractor": "stand-in", "least_side": "9"})
    onnx.save(model, tmp_path / "large.onnx")
    wrong = {
        ("--lpips", tmp_path / "large.onnx"): "The LPIPS network does not take the samples.",
        ("--lpips", network.save(tmp_path / "features.onnx")): "This is no LPIPS network.",
        ("--lpips", tmp_path / "none.onnx"): "There is no feature extractor.",
        ("--clip", tmp_path): "A CLIP score needs prompts.",
        ("--clip", tmp_path, "--prompt", "a cat"): "This is no CLIP model.",
        ("--prompt", "a cat"): "The model takes no prompts.",
        ("--prompt", "a cat", "--classes", "1"): "Prompts and classes cannot be combined.",
        ("--lpips", stand_in, "--ray"): "This does not run on a cluster.",
        ("--ray",): "A cluster needs a reference.",
    }
    for options, message in wrong.items():
        done = run("evaluate", tiny.folder, "--num", NUM, *options)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {message}\n  found:    ")
