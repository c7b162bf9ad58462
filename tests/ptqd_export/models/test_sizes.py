"""Bundles of several sizes: at each, full precision ends where diffusers ends, and all read the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import engines
from engines.backends.base import Engine
from engines.backends.choice import chosen_runtime, on_onnxruntime
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.cli import main as run
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.kept_engines import KeptEngines
from engines.networks.prompts import open_text
from ptqd_export.cli import main as export
from ptqd_export.commands import measure_runtimes as measuring
from ptqd_export.commands.measure_runtimes import measure_runtimes
from ptqd_export.models.load import load_at_size, load_model
from ptqd_export.plan import ModelSection
from ptqd_export.stages.estimate.planned_stages import planned_stages, without_size
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.commands.test_measure_runtimes import Changed
from tests.ptqd_export.models.pipelines import NEGATIVE, PROMPTS, of_pipeline, plan_of
from tests.ptqd_export.models.text.tiny_text import write_preview
from tests.ptqd_export.models.whole_pipelines import walked_by_pipeline

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

NUM = 2
PIXELS = ((8, 8), (12, 6))
LATENT = ((16, 16), (24, 16), (16, 32))
SMALL = 256
"""Bytes up to which a tensor stays in its graph."""

FEW = {"samples": 4, "batch_size": 4, "activation_samples": 8}


@pytest.fixture(scope="module")
def pixel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unconditional U-Net of two levels."""
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pixels") / "model"
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    network = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, add_attention=False, **blocks)
    network.save_pretrained(folder / "unet")
    DDIMScheduler(clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def pixel_build(pixel_model: Path, build_in: Callable[..., Built]) -> Built:
    """A bundle of two sizes."""
    return build_in(
        pixel_model.parent,
        model={"path": "model", "sizes": PIXELS},
        sampler={"name": "ddim", "steps": 2},
        precisions=["w8a8"],
        calibration=FEW,
    )


def sampled(bundle: Bundle, noise: NoiseSource, precision: str = "fp32", rows: tuple[int, ...] = (0, 1)) -> np.ndarray:
    """Samples 0 and 1 of a bundle, at its size."""
    choice = ChainChoice(precision=precision, correction="off")
    return choice.open(bundle, NUM).sample(noise, np.arange(NUM), np.array(rows))


@pytest.mark.parametrize("size", PIXELS)
def test_full_precision_walks_as_the_scheduler_does_at_every_size(pixel_build: Built, size: tuple[int, int]) -> None:
    import diffusers

    folder = pixel_build.plan_file.model_path
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(2)
    bundle = Bundle.open(pixel_build.folder, size)
    noise = NoiseSource(5, (1, *size))
    x = torch.from_numpy(noise.start(np.arange(NUM)))
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
    found = sampled(bundle, noise)
    assert np.abs(found - x.numpy()).max() < 1e-3 * x.abs().max()
    quantized = sampled(bundle, noise, "w8a8")
    assert 0 < np.abs(quantized - found).max() < 0.2 * np.abs(found).max()


def test_graphs_of_all_sizes_read_the_integers_of_the_first(pixel_build: Built) -> None:
    bundle = Bundle.open(pixel_build.folder, PIXELS[1])
    for name, record in bundle.manifest.precisions.items():
        graph = onnx.load(bundle.graph(record.graph, record.weights_of), load_external_data=False).graph
        outside = {one.name: one.external_data for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
        assert {pair.value for pairs in outside.values() for pair in pairs if pair.key == "location"} == {f"{name}.onnx.data"}
        weights = {one.name for one in graph.initializer if ".weight" in one.name and np.prod(one.dims, dtype=int) > SMALL}
        assert weights
        assert outside.keys() >= weights


def test_stages_are_the_planned_ones(pixel_build: Built) -> None:
    made = {folder.name.rpartition("-")[0] for folder in (pixel_build.folder / "local" / "stages").iterdir()}
    planned = planned_stages(pixel_build.context)
    assert made == {*planned} - {"bundle", "times", "optimize"}
    assert {without_size(stage) for stage in planned} >= {"trace", "quantize-w8a8", "gather-observe", "statistics"}
    assert not any("12x6" in without_size(stage) for stage in planned)


def test_commands_take_a_size(pixel_build: Built, tmp_path: Path) -> None:
    bundle, size = str(pixel_build.folder), ["--size", "12x6"]
    sample = ["sample", bundle, "--num", "2", "--seed", "1", "--format", "npz", "--runtime", "target"]
    CliRunner().invoke(run, [*sample, "--output", str(tmp_path / "own"), *size], catch_exceptions=False)
    with np.load(tmp_path / "own" / "samples.npz") as archive:
        found = archive["samples"]
    assert json.loads((tmp_path / "own" / "samples.json").read_text())["size"] == [12, 6]
    with engines.open_bundle(bundle, threads=1) as opened:
        assert opened.sizes == PIXELS
        np.testing.assert_allclose(opened.sample(2, latents=True, size=(12, 6)), found, atol=1e-5)
        assert opened.sample(1).shape == (1, 8, 8, 1)
    added = CliRunner().invoke(
        export, ["schedule", bundle, "--name", "four", "--steps", "4", "--samples", "4", *size], catch_exceptions=False
    )
    assert "--size 12x6" in added.output
    by_time = ["--name", "fast", "--policy", "budget", "--budget", "0.9", "--cost", "time"]
    refused = CliRunner().invoke(export, ["schedule", bundle, *by_time, *size])
    assert (refused.exit_code, "timed at a bundle's first size only" in refused.output) == (2, True), refused.output
    assert [one.schedules for one in Bundle.open(pixel_build.folder).at_sizes] == [("default",), ("default", "four")]
    CliRunner().invoke(export, ["schedule", bundle, "--remove", "four", *size], catch_exceptions=False)
    compared = CliRunner().invoke(run, ["compare", bundle, "--num", "2", "--json", str(tmp_path / "c.json"), *size], catch_exceptions=False)
    result = json.loads((tmp_path / "c.json").read_text())
    assert (compared.exit_code, [*result["precisions"]], result["size"]) == (0, ["w8a8"], [12, 6])
    assert "8x8, 12x6 (height x width)" in CliRunner().invoke(export, ["inspect", bundle], catch_exceptions=False).output


def test_runtimes_must_be_right_at_every_size(pixel_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(pixel_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    bundle = Bundle.open(folder)
    own = on_onnxruntime(bundle, threads=1)

    class WrongAtFurtherSize:
        def open(self, graph: Path, rows: int) -> Engine:
            return Changed(own.open(graph, rows), 0.0, 1.3 if graph.stem == "w8a8.12x6" else 1.0)

    backends = {"onnxruntime": own, "openvino": WrongAtFurtherSize()}
    monkeypatch.setattr(measuring, "open_backend", lambda _, name: backends[name])
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    found = measure_runtimes(folder)
    assert found is not None
    assert found.runtimes["onnxruntime"].refused is None
    assert "The engine of w8a8 is not the one" in str(found.runtimes["openvino"].refused)
    assert chosen_runtime(bundle.at((12, 6)), "auto")[1].endswith("timed at 8x8")


def test_sizes_that_a_network_cannot_have_are_refused(pixel_model: Path, sdxl: Path, tmp_path: Path) -> None:
    dit = tmp_path / "dit"
    (dit / "transformer").mkdir(parents=True)
    (dit / "transformer" / "config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel"}))
    plan = tmp_path / "plan.json"

    def refused(model: Path, *sizes: str) -> str:
        options = [part for size in sizes for part in ("--size", size)]
        found = CliRunner().invoke(export, ["init", "--model", str(model), "-o", str(plan), *options])
        assert found.exit_code == 2, found.output
        assert not plan.exists()
        return found.output

    near = refused(pixel_model, "8x8", "13x16")
    assert "found:    [13, 16] pixels" in near
    assert "a height of 12 or 14 and a width of 16" in near
    assert "multiples of 2 pixels" in refused(sdxl, "17x16")
    assert "position embeddings are those of one grid" in refused(dit, "8x8")
    assert "expected: HEIGHTxWIDTH" in refused(pixel_model, "8by8")
    assert "A size is named twice" in refused(pixel_model, "8x8", "12x6", "8x8")
    started = CliRunner().invoke(
        export, ["init", "--model", str(sdxl), "-o", str(plan), "--size", "16x24", "--size", "32x16"], catch_exceptions=False
    )
    assert json.loads(plan.read_text())["model"]["sizes"] == [[16, 24], [32, 16]]
    assert "size: 16x24, 32x16 (height x width)" in started.output


def test_time_ids_follow_the_size(sdxl: Path) -> None:
    plan_file = plan_of(sdxl, sizes=[[16, 24], [32, 16]])
    first = load_model(plan_file)
    other = load_at_size(plan_file, first, (32, 16))
    for model, (height, width) in ((first, (16, 24)), (other, (32, 16))):
        assert model.sample_shape[1:] == (height / 2, width / 2)
        assert model.conditioning is not None
        assert model.conditioning.null is not None
        assert model.prompts is not None
        told = [height, width, 0, 0, height, width]
        assert model.conditioning.tables["time_ids"].tolist() == [told] * len(PROMPTS)
        assert model.conditioning.null["time_ids"].tolist() == told
        assert model.prompts.fixed["time_ids"] == tuple(told)
    values = dict(first.adapter.network.named_parameters())
    assert all(one.data_ptr() == values[name].data_ptr() for name, one in other.adapter.network.named_parameters())


def test_prepared_conditions_of_one_size_are_refused(sdxl: Path) -> None:
    plan_file = plan_of(sdxl)
    section = ModelSection(path=str(sdxl), conditions="conditions.npz", sizes=((16, 24), (32, 16)))
    with pytest.raises(UsageError, match="belong to one size"):
        load_model(replace(plan_file, plan=plan_file.plan.model_copy(update={"model": section})))


@pytest.mark.slow
def test_stable_diffusion_ends_where_the_pipeline_ends_at_every_size(sd1: Path) -> None:
    from diffusers import AutoencoderTiny

    write_preview(sd1.parent / "preview")
    preview = AutoencoderTiny.from_pretrained(sd1.parent / "preview").eval()
    plan_file = plan_of(sd1, sizes=LATENT, encoder=True, preview="preview")
    run_build(plan_file)
    for size in LATENT:
        bundle = Bundle.open(plan_file.output_path, size)
        noise = NoiseSource(5, bundle.manifest.model.sample_shape)
        conditioning = open_text(bundle).condition(PROMPTS, NEGATIVE)
        choice = ChainChoice(precision="fp32", correction="off")
        states = choice.open(bundle, NUM, conditioning).sample(noise, np.arange(NUM), np.arange(NUM))
        kept = KeptEngines(bundle)
        expected = of_pipeline(sd1, PROMPTS, NEGATIVE, noise.start(np.arange(NUM)), "pt")
        images = kept.decoder(states)
        assert images.shape[2:] == size
        np.testing.assert_allclose(images.clip(-1, 1), expected, atol=1e-3)
        assert kept.encoder(images).shape == states.shape
        with torch.no_grad():
            np.testing.assert_allclose(kept.preview(states), preview.decode(torch.from_numpy(states)).sample.numpy(), atol=1e-4)
        assert np.isfinite(
            ChainChoice(precision="w8a8").open(bundle, NUM, conditioning).sample(noise, np.arange(NUM), np.arange(NUM))
        ).all()


@pytest.mark.slow
def test_flux_ends_where_the_pipeline_ends_at_every_size(
    transformer_folder: Callable[[str], Path], build_in: Callable[..., Built], tmp_path: Path
) -> None:
    """The shift of the noise levels, the rotary tables and the packing follow the size."""
    folder = transformer_folder("flux-dev")
    sizes = ((16, 12), (12, 24), (20, 20))
    built = build_in(
        tmp_path,
        model={"path": str(folder), "conditions": str(folder.parent / "conditions.npz"), "sizes": sizes},
        sampler={"name": "flow-euler", "steps": 3, "guidance": 3.5},
        precisions=["w8a8"],
        calibration=FEW,
    )
    timesteps = set()
    for size in sizes:
        bundle = Bundle.open(built.folder, size)
        noise, rows = NoiseSource(5, bundle.manifest.model.sample_shape), np.array([1, 0])
        expected = walked_by_pipeline("flux-dev", folder, noise, rows, 3, 3.5)
        found = sampled(bundle, noise, rows=(1, 0))
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
        assert np.abs(sampled(bundle, noise, "w8a8", (1, 0)) - expected).max() < 0.1 * np.abs(expected).max()
        timesteps.add(bundle.schedule().steps[1].timestep)
    assert len(timesteps) == len({height * width for height, width in sizes})


@pytest.mark.slow
def test_tensorrt_builds_an_engine_for_every_size(pixel_model: Path, build_in: Callable[..., Built], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    from ptqd_export.commands.engines_command import build_engines

    built = build_in(
        tmp_path,
        model={"path": str(pixel_model), "sizes": PIXELS},
        sampler={"name": "ddim", "steps": 2},
        precisions=["w8a8"],
        calibration=FEW,
        target={"name": "tensorrt-rtx", "high_precision": "fp32", "threads": 1, "batch": {"opt": 2, "max": 2}},
    )
    names = [one.name for one in build_engines(built.folder)]
    assert names == ["fp32", "w8a8", "fp32 of 12x6", "w8a8 of 12x6"]
