"""Whole builds of tiny random models: the bundle and its promises."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from calib.quantizers.rules.placement import PLACEMENTS
from engines.bundle.bundle import Bundle
from engines.host.machine import machine_name
from ptqd_export.stages.finish.assemble import PACKAGES
from tests.ptqd_export.stages.whole_builds import CHANNELS, QUANTIZED, STEPS, sample

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.fixture(params=["class_build", "cross_build"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def built(name: str, request: pytest.FixtureRequest) -> Built:
    found: Built = request.getfixturevalue(name)
    return found


# The bundle


def test_bundle_opens_and_every_file_has_its_hash(name: str, built: Built) -> None:
    bundle = Bundle.open(built.folder)
    names = {"fp32", *QUANTIZED[name]}
    graphs = {f"graphs/onnxruntime/{precision}.{part}" for precision in names for part in ("onnx", "onnx.data", "body.onnx")}
    graphs |= {
        file for record in bundle.manifest.precisions.values() for file in (record.pieces.embeddings.values() if record.pieces else ())
    }
    statistics = {f"statistics/onnxruntime/{precision}.json" for precision in QUANTIZED[name]}
    others = {"cross_build": "conditioning/default.npz", "class_build": "report/pictures.png"}  # two channels are no picture
    written = {"plan.json", "schedules/default.json", "report/index.html", others[name]}
    assert set(bundle.manifest.files) == {*written, *graphs, *statistics}
    assert set(bundle.manifest.precisions) == names
    for file in bundle.manifest.files:
        assert bundle.path(file).is_file()
    assert set(built.portable()) == {"manifest.json", *bundle.manifest.files}


def test_manifest_says_what_the_model_is(class_build: Built, cross_build: Built) -> None:
    manifest = Bundle.open(class_build.folder).manifest
    assert manifest.model.family == "diffusers UNet2DModel"
    assert manifest.model.sample_shape == (1, 8, 8)
    assert manifest.model.parameters == sum(p.numel() for p in class_build.context.model.adapter.network.parameters())
    assert manifest.model.conditioning is not None
    assert (manifest.model.conditioning.rows, manifest.model.conditioning.null_class) == (3, 3)  # the last of four labels means none
    assert (manifest.guidance, manifest.parameterization) == (1.5, "epsilon")
    assert set(manifest.versions) == set(PACKAGES)
    conditioning = Bundle.open(cross_build.folder).manifest.model.conditioning
    assert conditioning is not None
    assert (conditioning.rows, conditioning.file) == (3, "conditioning/default.npz")
    assert [(value.name, value.dtype, value.shape) for value in conditioning.inputs] == [("encoder_hidden_states", "float32", (5, 12))]


def test_conditions_travel_with_the_bundle(cross_build: Built) -> None:
    with (
        np.load(cross_build.plan_file.folder / "conditions.npz") as given,
        np.load(cross_build.folder / "conditioning/default.npz") as kept,
    ):
        assert sorted(given.files) == sorted(kept.files)
        for array in given.files:
            np.testing.assert_array_equal(given[array], kept[array])


def test_every_graph_is_valid_with_named_inputs_and_a_free_batch(built: Built) -> None:
    for path in sorted((built.folder / "graphs" / "onnxruntime").glob("*.onnx")):
        onnx.checker.check_model(str(path), full_check=True)
        graph = onnx.load(path).graph
        _, _, piece = path.stem.partition(".")
        inputs = {"": ["sample", "timestep"], "body": ["sample", "embedding_0"]}
        assert [value.name for value in graph.input][:2] == inputs.get(piece, [value.name for value in graph.input][:2])
        assert [value.name for value in graph.output] == [piece if piece.startswith("embedding") else "out"]
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)} == {"batch"}


def test_every_step_has_a_finite_correction_for_every_precision(name: str, built: Built) -> None:
    schedule = Bundle.open(built.folder).schedule()
    assert len(schedule.steps) == STEPS[name]
    stored = {"name", "steps", "eta", "guidance", "timesteps", "sigmas"}
    assert schedule.sampler.model_dump() == built.context.plan.sampler.model_dump(include=stored)
    for step in schedule.steps:
        assert set(step.corrections) == {"fp32", *QUANTIZED[name]}
        assert step.precision in step.corrections
        for precision, correction in step.corrections.items():
            assert len(correction.gain) == len(correction.offset) == CHANNELS[name]
            assert correction.sigma_corrected <= step.sigma
            assert (correction.residual_variance == 0) is (precision == "fp32")
    assert set(schedule.steps[0].corrections["fp32"].gain) == {1.0}


def test_last_step_adds_no_noise_and_the_paper_mode_never_amplifies(cross_build: Built) -> None:
    schedule = Bundle.open(cross_build.folder).schedule()
    assert schedule.correction.mode == "ptqd"
    assert schedule.steps[-1].sigma == 0
    assert all(gain <= 1 for step in schedule.steps for correction in step.corrections.values() for gain in correction.gain)


def test_statistics_are_complete_and_finite(name: str, built: Built) -> None:
    table = built.context.table
    for precision in QUANTIZED[name]:
        content = json.loads((built.folder / f"statistics/onnxruntime/{precision}.json").read_text(), parse_constant=_refuse)
        assert content["precision"] == precision
        assert content["guidance"] == built.context.plan.sampler.guidance
        assert [step["step"] for step in content["steps"]] == list(range(STEPS[name]))
        assert [step["timestep"] for step in content["steps"]] == table.timestep.tolist()
        for step in content["steps"]:
            assert step["n"] == 16
            assert len(step["mu"]) == len(step["k_channel"]) == CHANNELS[name]
            assert 0 <= step["r2"] <= 1
            assert step["s2"] > 0
            assert all(math.isfinite(step[key]) for key in ("k", "k_standard_error", "snr_db", "corrected_snr_db", "residual_variance"))
            assert len(step["moments"]) > 0


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_statistics_get_worse_as_bits_fall(class_build: Built) -> None:
    means = {
        precision: np.mean([step["snr_db"] for step in class_build.json(f"statistics/onnxruntime/{precision}.json")["steps"]])
        for precision in QUANTIZED["class_build"]
    }
    assert means["w8a8"] > means["w4a8"] > means["w3a8"]
    assert means["w4a8"] > means["w4a4"]


def test_every_layer_is_listed_with_a_reason_where_it_is_in_float(name: str, built: Built) -> None:
    expected = [layer.name for layer in built.network.layers]
    for precision in QUANTIZED[name]:
        layers = built.json(f"statistics/onnxruntime/{precision}.json")["layers"]
        assert [layer["name"] for layer in layers] == expected
        for layer in layers:
            integer = layer["weight_bits"] is not None and layer["activation_bits"] is not None
            assert integer is (layer["reason"] is None), layer
            assert (layer["input"] is not None) is integer
            quantized_output = integer and PLACEMENTS["onnxruntime"].ops[layer["op"]].quantize_output
            assert (layer["output"] is not None) is quantized_output


def test_measured_times_are_kept_apart_by_machine(name: str, built: Built) -> None:
    times = built.json(f"local/{machine_name()}/times.json")
    assert set(times["milliseconds_a_step"]) == {"fp32", *QUANTIZED[name]}
    assert all(milliseconds > 0 for milliseconds in times["milliseconds_a_step"].values())
    assert (times["batch"], times["guided"]) == (2, True)
    assert machine_name() not in "".join(Bundle.open(built.folder).manifest.files)


def test_measured_times_are_in_the_report_of_this_machine_alone(built: Built) -> None:
    milliseconds = built.json(f"local/{machine_name()}/times.json")["milliseconds_a_step"]["fp32"]
    local = (built.folder / "local" / machine_name() / "report.html").read_text()
    assert f">{milliseconds:.1f} (1.00x)<" in local
    assert ">ms per step<" in local
    assert "ms per step" not in (built.folder / "report" / "index.html").read_text()


def test_bit_operations_are_those_of_the_precision(built: Built) -> None:
    for precision, record in Bundle.open(built.folder).manifest.precisions.items():
        bits = record.weight_bits * record.activation_bits
        saved = {"fp32": 1.0, "w4a16": 1.0}.get(precision, 1024 / bits)
        assert record.bit_operations_saved == pytest.approx(saved)
        assert 1 <= record.bit_operations_saved_all <= max(saved, 8)


# Sampling from it


@pytest.mark.parametrize("precision", [None, "fp32", "w4a8"])
def test_samples_come_out_of_the_bundle(name: str, built: Built, precision: str | None) -> None:
    samples = sample(built.folder, precision=precision)
    assert samples.shape == (6, CHANNELS[name], 8, 8)
    assert np.isfinite(samples).all()
    apart = np.abs(sample(built.folder, first=2, precision=precision)[:4] - samples[2:])
    assert apart.mean() < 0.01 * samples.std()  # the same samples in another batch, but for rounding ties


def test_correction_changes_the_samples(class_build: Built) -> None:
    assert not np.array_equal(sample(class_build.folder, precision="w4a4"), sample(class_build.folder, precision="w4a4", corrected=False))
