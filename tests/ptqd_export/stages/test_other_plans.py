"""Builds of changed plans: what is made again, and what the change does to the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from engines.bundle.bundle import Bundle
from engines.errors import UsageError
from engines.untrusted import external_data
from ptqd_export.graph import graph_files
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.whole_builds import FinishedStages, changed, portable, remade_stages, sample

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

SHARD = 20_000


@pytest.mark.parametrize(
    ("sections", "remade"),
    [
        ({"correction": {"mode": "mmse"}}, {"statistics", "check", "pictures"}),
        ({"target": {"benchmark_batch": 1}}, set()),
        ({"calibration": {"trajectory": "fp"}}, {"statistics", "check", "pictures"}),
        ({"precisions": ["fp32"]}, {"statistics", "check", "pictures"}),
        ({"model": {"null_class": 0}}, {"states", "observe", "quantize-w8a8", "statistics", "check", "pictures"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_changed_plan_remakes_what_depends_on_the_change(
    small_build: Built, tmp_path: Path, finished: FinishedStages, sections: dict[str, Any], remade: set[str]
) -> None:
    plan_file = changed(small_build, tmp_path / "bundle", **sections)
    run_build(plan_file, on_progress=finished)
    assert set(remade_stages(finished)) == remade
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.schedule().steps
    assert json.loads((tmp_path / "bundle" / "plan.json").read_text()) == plan_file.plan.model_dump(mode="json")


def test_fixed_precisions_are_the_schedules(class_build: Built, tmp_path: Path, finished: FinishedStages) -> None:
    chosen = ["w8a8", "fp32", "w4a8", "w8a8"]
    plan_file = changed(class_build, tmp_path / "bundle", precisions=["w8a8", "w4a8"], steps={"policy": "fixed", "precisions": chosen})
    run_build(plan_file, on_progress=finished)
    assert list(remade_stages(finished)) == ["statistics", "check", "pictures"]
    assert [step.precision for step in Bundle.open(tmp_path / "bundle").schedule().steps] == chosen
    assert np.isfinite(sample(tmp_path / "bundle")).all()


def test_layers_that_the_plan_keeps_in_float_are_listed_and_left_alone(
    class_build: Built, tmp_path: Path, finished: FinishedStages
) -> None:
    run_build(
        changed(class_build, tmp_path / "bundle", quantization={"keep_float": ["mid_block.*"]}, precisions=["w8a8"]), on_progress=finished
    )
    assert list(remade_stages(finished)) == ["quantize-w8a8", "statistics", "check", "pictures"]
    layers = json.loads((tmp_path / "bundle/statistics/onnxruntime/w8a8.json").read_text())["layers"]
    kept = {layer["name"] for layer in layers if layer["reason"] == "kept in float by the plan (mid_block.*)"}
    assert kept == {layer["name"] for layer in layers if layer["name"].startswith("mid_block.")} != set()
    stored = {tensor.name for tensor in onnx.load(tmp_path / "bundle/graphs/onnxruntime/w8a8.onnx").graph.initializer}
    assert "mid_block.resnets.0.conv1.weight" in stored
    assert "mid_block.resnets.0.conv1.weight.int" not in stored


def test_layers_that_the_plan_gives_8bit_weights_are_listed_and_stored_so(class_build: Built, tmp_path: Path) -> None:
    run_build(changed(class_build, tmp_path / "bundle", quantization={"keep_8bit_weights": ["mid_block.*"]}, precisions=["w4a8"]))
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
def test_patterns_that_cannot_be_meant_are_refused_right_after_the_trace(
    small_build: Built, tmp_path: Path, finished: FinishedStages, section: dict[str, list[str]], part: str
) -> None:
    with pytest.raises(UsageError) as error:
        run_build(changed(small_build, tmp_path / "bundle", quantization=section), on_progress=finished)
    assert part in str(error.value)
    assert [stage.stage for stage in finished] == ["trace"]
    assert portable(tmp_path / "bundle") == {}


def test_weights_in_shards_beside_their_graphs_are_part_of_the_bundle(
    class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: FinishedStages
) -> None:
    output = tmp_path / "bundle"
    plan_file = class_build.resumed_in(output, precisions=["w8a8"])
    shutil.rmtree(next(output.glob("local/stages/quantize-w8a8-*")))
    monkeypatch.setattr(graph_files, "EXTERNAL_DATA_BYTES", 1000)
    monkeypatch.setattr(graph_files, "SHARD_BYTES", SHARD)
    run_build(plan_file, on_progress=finished)
    bundle = Bundle.open(output)
    graph, *weights = (file.relative_to(output).as_posix() for file in external_data.graph_files(bundle.verified_graph("w8a8")))
    sizes = {name: record.bytes for name, record in bundle.manifest.files.items()}
    assert len(weights) > 2
    assert max(sizes[name] for name in weights) <= SHARD
    assert bundle.manifest.bytes_of(["w8a8"]) == sizes[graph] + sum(sizes[name] for name in weights)
    bundle.check_files()
    beside, inside = (sample(folder, precision="w8a8", corrected=False) for folder in (output, class_build.folder))
    np.testing.assert_array_equal(beside, inside)
    assert finished


def test_unconditional_model_is_built_and_sampled(tmp_path: Path, finished: FinishedStages) -> None:
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
    run_build(PlanFile(Plan.model_validate(plan), tmp_path), on_progress=finished)
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.model.conditioning is None
    assert all(step.clip == 1.0 for step in bundle.schedule().steps)
    samples = sample(tmp_path / "bundle")
    assert samples.shape == (6, 3, 8, 8)
    assert np.abs(samples).max() <= 1.0001  # the last prediction is the sample, and clipped
    assert finished
