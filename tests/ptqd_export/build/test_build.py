"""Whole builds of tiny random models: the bundle and its promises, resuming, and rebuilding byte by byte."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import ptqd_export.build as module
from calib.placement import PLACEMENTS
from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.errors import PtqdError, UsageError
from engines.machine import machine_name
from engines.noise import NoiseSource
from engines.sampling import Chain
from ptqd_export import graph_files
from ptqd_export.build import run_build
from ptqd_export.build.assemble import PACKAGES
from ptqd_export.build.stages import Finished
from ptqd_export.plan import Plan, PlanFile

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

CHANNELS = {"class_build": 1, "cross_build": 2}
STEPS = {"class_build": 4, "cross_build": 3}
QUANTIZED = {"class_build": ("w8a8", "w4a8", "w4a4", "w3a8"), "cross_build": ("w8a8", "w4a8", "w4a16")}


@pytest.fixture(params=["class_build", "cross_build"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def built(name: str, request: pytest.FixtureRequest) -> Built:
    found: Built = request.getfixturevalue(name)
    return found


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Finished]:
    """The stages of the builds that a test runs, in place of the table at the end."""
    stages: list[Finished] = []
    monkeypatch.setattr(module, "print_summary", lambda *given: stages.extend(given[-1]))
    return stages


def _remade(finished: list[Finished]) -> Iterator[str]:
    return (stage.name for stage in finished if not stage.reused)


def _portable(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("local/")}


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
    assert schedule.sampler.model_dump() == built.context.plan.sampler.model_dump(include={"name", "steps", "eta", "guidance"})
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
    assert f">{milliseconds:.1f} ms (1.00x)<" in local
    assert " ms (1.00x)<" not in (built.folder / "report" / "index.html").read_text()


def test_bit_operations_are_those_of_the_precision(built: Built) -> None:
    for precision, record in Bundle.open(built.folder).manifest.precisions.items():
        bits = record.weight_bits * record.activation_bits
        saved = {"fp32": 1.0, "w4a16": 1.0}.get(precision, 1024 / bits)
        assert record.bit_operations_saved == pytest.approx(saved)
        assert 1 <= record.bit_operations_saved_all <= max(saved, 8)


# Sampling from it


@pytest.mark.parametrize("precision", [None, "fp32", "w4a8"])
def test_samples_come_out_of_the_bundle(name: str, built: Built, precision: str | None) -> None:
    samples = _sample(built.folder, precision=precision)
    assert samples.shape == (6, CHANNELS[name], 8, 8)
    assert np.isfinite(samples).all()
    apart = np.abs(_sample(built.folder, first=2, precision=precision)[:4] - samples[2:])
    assert apart.mean() < 0.01 * samples.std()  # the same samples in another batch, but for rounding ties


def test_correction_changes_the_samples(class_build: Built) -> None:
    assert not np.array_equal(_sample(class_build.folder, precision="w4a4"), _sample(class_build.folder, precision="w4a4", corrected=False))


def _sample(folder: Path, *, first: int = 0, precision: str | None = None, corrected: bool = True) -> Array:
    bundle = Bundle.open(folder)
    schedule = bundle.schedule()
    bank = EngineBank(bundle, schedule.sampler.guidance, threads=1)
    noise = NoiseSource(5, bundle.manifest.model.sample_shape)
    samples = np.arange(first, first + 6, dtype=np.int64)
    rows = np.zeros_like(samples) if bank.conditioning is None else samples % bank.conditioning.rows
    return Chain(schedule, bank, precision, corrected).sample(noise, samples, rows)


# Again


def test_second_run_reuses_every_stage_and_writes_the_same_bytes_elsewhere(
    class_build: Built, tmp_path: Path, finished: list[Finished]
) -> None:
    plan_file = class_build.resumed_in(tmp_path / "bundle")
    run_build(plan_file)
    assert {stage.name for stage in finished} == {
        "trace",
        "states",
        "observe",
        "statistics",
        "pictures",
        *(f"quantize-{p}" for p in QUANTIZED["class_build"]),
    }
    assert all(stage.reused for stage in finished)
    assert _portable(tmp_path / "bundle") == class_build.portable()
    run_build(plan_file)  # over its own bundle
    assert _portable(tmp_path / "bundle") == class_build.portable()


def test_fresh_build_writes_the_same_bytes_and_nothing_but_its_stages_on_the_terminal(
    class_build: Built, tmp_path: Path, finished: list[Finished], capfd: pytest.CaptureFixture[str]
) -> None:
    run_build(class_build.resumed_in(tmp_path / "bundle"), fresh=True)
    assert not any(stage.reused for stage in finished)
    out, err = capfd.readouterr()
    assert out == ""
    *made, pictures = (stage.name for stage in finished)
    assert [line.split()[0] for line in err.splitlines()] == [*made, "check", pictures]
    assert _portable(tmp_path / "bundle") == class_build.portable()


def test_interrupted_build_leaves_no_manifest_and_resumes(
    class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: list[Finished]
) -> None:
    output = tmp_path / "bundle"
    plan_file = class_build.resumed_in(output)
    shutil.rmtree(next(output.glob("local/stages/statistics-*")))

    def fail(*_given: Any) -> None:
        raise PtqdError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_statistics", fail)
        with pytest.raises(PtqdError, match="the power went"):
            run_build(plan_file)
    assert _portable(output) == {}
    assert not list(output.glob("local/stages/.unfinished*"))
    run_build(plan_file)
    assert list(_remade(finished)) == ["statistics"]
    assert _portable(output) == class_build.portable()


def test_build_that_fails_while_it_writes_the_bundle_leaves_the_earlier_one_whole(
    class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: list[Finished]
) -> None:
    plan_file = class_build.resumed_in(tmp_path / "bundle")
    run_build(plan_file)
    assert finished

    def fail(*_given: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(sys.modules["ptqd_export.build.assemble"], "statistics", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run_build(plan_file)
    assert _portable(tmp_path / "bundle") == class_build.portable()


def test_files_of_an_earlier_plan_are_removed(class_build: Built, tmp_path: Path, finished: list[Finished]) -> None:
    output = tmp_path / "bundle"
    run_build(class_build.resumed_in(output))
    plan = Plan.model_validate(class_build.plan_file.plan.model_dump(mode="json") | {"precisions": ["w8a8"]})
    run_build(replace(class_build.plan_file, plan=plan, output=output))
    assert {path.name.partition(".")[0] for path in (output / "graphs" / "onnxruntime").iterdir()} == {"fp32", "w8a8"}
    assert {path.stem for path in (output / "statistics" / "onnxruntime").iterdir()} == {"w8a8"}
    assert {path.name.partition("-")[0] for path in (output / "local" / "stages").iterdir()} == {
        "trace", "states", "observe", "quantize", "statistics", "pictures",
    }  # fmt: skip
    assert set(_portable(output)) == {"manifest.json", *Bundle.open(output).manifest.files}
    assert len(finished) == 9 + 6


def test_table_at_the_end_names_every_precision_and_what_to_do_next(
    class_build: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_build(class_build.resumed_in(tmp_path / "bundle"))
    out, err = capsys.readouterr()
    for precision in ("fp32", *QUANTIZED["class_build"]):
        assert f" {precision} " in out
    assert "ptqd-run sample" in out.replace("\n", " ")
    assert err.count("as before") == 9
    assert "\x1b" not in out + err


# Other plans


def _changed(built: Built, output: Path, **sections: Any) -> PlanFile:
    plan = built.plan_file.plan.model_dump(mode="json")
    merged = {key: plan[key] | value if isinstance(value, dict) else value for key, value in sections.items()}
    return built.resumed_in(output, **merged)


@pytest.mark.parametrize(
    ("sections", "remade"),
    [
        ({"correction": {"mode": "mmse"}}, {"statistics", "pictures"}),
        ({"target": {"benchmark_batch": 1}}, set()),
        ({"calibration": {"samples": 12}}, {"statistics", "pictures"}),
        ({"calibration": {"trajectory": "fp"}, "precisions": ["w8a8"]}, {"statistics", "pictures"}),
        ({"precisions": ["fp32"]}, {"statistics", "pictures"}),
        ({"model": {"null_class": 0}, "precisions": ["w8a8"]}, {"states", "observe", "quantize-w8a8", "statistics", "pictures"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_changed_plan_remakes_what_depends_on_the_change(
    class_build: Built, tmp_path: Path, finished: list[Finished], sections: dict[str, Any], remade: set[str]
) -> None:
    plan_file = _changed(class_build, tmp_path / "bundle", **sections)
    run_build(plan_file)
    assert set(_remade(finished)) == remade
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.schedule().steps
    assert json.loads((tmp_path / "bundle" / "plan.json").read_text()) == plan_file.plan.model_dump(mode="json")


def test_fixed_precisions_are_the_schedules(class_build: Built, tmp_path: Path, finished: list[Finished]) -> None:
    chosen = ["w8a8", "fp32", "w4a8", "w8a8"]
    run_build(_changed(class_build, tmp_path / "bundle", steps={"policy": "fixed", "precisions": chosen}))
    assert list(_remade(finished)) == ["statistics", "pictures"]
    assert [step.precision for step in Bundle.open(tmp_path / "bundle").schedule().steps] == chosen
    assert np.isfinite(_sample(tmp_path / "bundle")).all()


def test_layers_that_the_plan_keeps_in_float_are_listed_and_left_alone(
    class_build: Built, tmp_path: Path, finished: list[Finished]
) -> None:
    run_build(_changed(class_build, tmp_path / "bundle", quantization={"keep_float": ["mid_block.*"]}, precisions=["w8a8"]))
    assert list(_remade(finished)) == ["quantize-w8a8", "statistics", "pictures"]
    layers = json.loads((tmp_path / "bundle/statistics/onnxruntime/w8a8.json").read_text())["layers"]
    kept = {layer["name"] for layer in layers if layer["reason"] == "kept in float by the plan (mid_block.*)"}
    assert kept == {layer["name"] for layer in layers if layer["name"].startswith("mid_block.")} != set()
    stored = {tensor.name for tensor in onnx.load(tmp_path / "bundle/graphs/onnxruntime/w8a8.onnx").graph.initializer}
    assert "mid_block.resnets.0.conv1.weight" in stored
    assert "mid_block.resnets.0.conv1.weight.int" not in stored


def test_layers_that_the_plan_gives_8bit_weights_are_listed_and_stored_so(class_build: Built, tmp_path: Path) -> None:
    run_build(_changed(class_build, tmp_path / "bundle", quantization={"keep_8bit_weights": ["mid_block.*"]}, precisions=["w4a8"]))
    layers = json.loads((tmp_path / "bundle/statistics/onnxruntime/w4a8.json").read_text())["layers"]
    kept = [layer for layer in layers if layer["reason"] == "8-bit weights by the plan (mid_block.*)"]
    assert {layer["name"] for layer in kept} >= {"mid_block.resnets.0.conv1", "mid_block.resnets.1.conv2"}
    assert {(layer["weight_bits"], layer["activation_bits"]) for layer in kept} == {(8, 8)}
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "bundle/graphs/onnxruntime/w4a8.onnx").graph.initializer}
    assert stored["mid_block.resnets.0.conv1.weight.int"].data_type == onnx.TensorProto.INT8
    assert stored["down_blocks.0.resnets.0.conv1.weight.int"].data_type == onnx.TensorProto.INT4


@pytest.mark.parametrize(
    ("section", "part"),
    [
        ({"keep_float": ["mid_block.*", "mid_blok.*"]}, '"mid_blok.*" in quantization.keep_float'),
        ({"keep_8bit_weights": ["mid_blok.*"]}, '"mid_blok.*" in quantization.keep_8bit_weights'),
        ({"keep_float": ["*"]}, "keeps every layer in float"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(class_build: Built, tmp_path: Path, section: dict[str, list[str]], part: str) -> None:
    with pytest.raises(UsageError) as error:
        run_build(_changed(class_build, tmp_path / "bundle", quantization=section))
    assert part in str(error.value)
    assert _portable(tmp_path / "bundle") == {}


def test_weights_beside_their_graphs_are_part_of_the_bundle(
    class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: list[Finished]
) -> None:
    output = tmp_path / "bundle"
    plan_file = class_build.resumed_in(output, precisions=["w8a8"])
    shutil.rmtree(next(output.glob("local/stages/quantize-w8a8-*")))
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", 1000)
    run_build(plan_file)
    bundle = Bundle.open(output)
    assert "graphs/onnxruntime/w8a8.onnx.data" in bundle.manifest.files
    assert bundle.path("graphs/onnxruntime/w8a8.onnx.data").stat().st_size > bundle.path("graphs/onnxruntime/w8a8.onnx").stat().st_size
    beside, inside = (_sample(folder, precision="w8a8", corrected=False) for folder in (output, class_build.folder))
    np.testing.assert_array_equal(beside, inside)
    assert finished


def test_unconditional_model_is_built_and_sampled(tmp_path: Path, finished: list[Finished]) -> None:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(2)
    network = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "model" / "unet")
    DDPMScheduler(clip_sample=True).save_pretrained(tmp_path / "model" / "scheduler")
    plan = {
        "model": {"path": "model"}, "sampler": {"name": "ddim", "steps": 2, "eta": 0.0}, "precisions": ["w8a8"],
        "calibration": {"samples": 8, "batch_size": 8, "activation_samples": 16},
        "target": {"name": "onnxruntime", "threads": 2, "benchmark_batch": 2}, "output": "bundle",
    }  # fmt: skip
    run_build(PlanFile(Plan.model_validate(plan), tmp_path))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.model.conditioning is None
    assert all(step.clip == 1.0 for step in bundle.schedule().steps)
    samples = _sample(tmp_path / "bundle")
    assert samples.shape == (6, 3, 8, 8)
    assert np.abs(samples).max() <= 1.0001  # the last prediction is the sample, and clipped
    assert finished
