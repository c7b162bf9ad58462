"""A share of the multiplications in float goes where the noise is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calib.quantizers.rules.precision import Precision
from ptqd_export.plan import plan_of
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.noisy_layers import load_noisy, make_layer_noise
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from tests.ptqd_export.stages.precisions.test_integer_speed import integer_layers
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

W4A8 = Precision.parse("w4a8")
SHARE = 0.15


@pytest.fixture
def sources(class_build: Built) -> Sources:
    trace, states, seen = (class_build.stage(name) for name in ("trace", "states", "observe"))
    return Sources(trace, states, seen)


def _context(built: Built, share: float) -> BuildContext:
    plan = built.plan_file.plan
    changed = plan.model_dump(mode="json") | {"quantization": {**plan.quantization.model_dump(mode="json"), "float_share": share}}
    return built.context.changed(replace(built.plan_file, plan=plan_of(changed, Path("plan.json"))))


def _verified(context: BuildContext, sources: Sources, folder: Path) -> float:
    folder.mkdir()
    make_quantized_graph(context, W4A8, sources, None, folder, Recorder())
    return float(json.loads((folder / "precision.json").read_text())["verification"]["noise"])


def test_a_share_in_float_takes_noise_away(class_build: Built, sources: Sources, tmp_path: Path) -> None:
    (folder := tmp_path / "noise").mkdir()
    context = _context(class_build, SHARE)
    make_layer_noise(context, W4A8, sources, folder, Recorder())
    noisy = load_noisy(folder)
    whole = json.loads((class_build.stage("quantize-w4a8") / "precision.json").read_text())["verification"]["noise"]
    powers = [10 ** (decibels / 10) for decibels in json.loads((folder / "noise.json").read_text())["noise_db"].values()]
    assert 10 * math.log10(sum(powers)) == pytest.approx(-whole, abs=2.5), "the layers' noise adds up to the network's"

    macs = {layer.name: layer.macs for layer in class_build.network.layers}
    assert noisy
    assert list(noisy.values()) == sorted(noisy.values(), reverse=True)
    assert sum(macs[name] for name in noisy) <= SHARE * sum(macs.values())

    quieter = _verified(context, replace(sources, noisy=noisy), tmp_path / "quieter")
    assert quieter > whole + 1
    record = {layer["name"]: layer for layer in json.loads((tmp_path / "quieter" / "precision.json").read_text())["layers"]}
    for name, decibels in noisy.items():
        assert (record[name]["weight_bits"], record[name]["activation_bits"]) == (8, None)
        assert record[name]["reason"] == f"among the noisiest layers: {decibels:.0f} dB alone; 8-bit weights, float activations"
    assert not noisy.keys() & integer_layers(tmp_path / "quieter" / "w4a8.onnx")
