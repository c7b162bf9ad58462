"""U-Nets with the residuals of a ControlNet or a T2I adapter, against diffusers' own pipelines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import engines
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.cli import main
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.networks.conditioning import Conditioning
from engines.networks.engine_bank import load_conditioning
from ptqd_export.cli import main as export
from ptqd_export.diffusers import PtqdDenoiser, use_bundle
from ptqd_export.models.load import load_model
from ptqd_export.stages.run_build import run_build
from ptqd_export.stages.summary import _control
from tests.ptqd_export.models.control.control_parts import (
    GUIDANCE,
    NUM,
    SEED,
    SIDE,
    of_conditions,
    parts,
    pixels,
    save_model,
    settings,
    table,
)
from tests.ptqd_export.models.pipelines import PROMPTS, pipeline, plan_of
from tests.ptqd_export.models.text import tiny_text

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

PIXELS = 8 * SIDE
IMAGE = pixels(7, PIXELS)
Residuals = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def own() -> dict[str, Any]:
    return parts()


@pytest.fixture(scope="module")
def controlnet(own: dict[str, Any]) -> Any:
    """A ControlNet that was trained a little: its last convolutions are not zeros."""
    from diffusers import ControlNetModel

    torch.manual_seed(1)
    found = ControlNetModel.from_unet(own["unet"], conditioning_embedding_out_channels=(4, 4, 4, 4))
    for name, parameter in found.named_parameters():
        if not parameter.any() or name.startswith("controlnet_cond_embedding"):
            torch.nn.init.normal_(parameter, std=0.5)
    return found.eval()


@pytest.fixture(scope="module")
def adapter() -> Any:
    from diffusers import T2IAdapter

    torch.manual_seed(2)
    return T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=8, adapter_type="full_adapter").eval()


@pytest.fixture(scope="module")
def folder(own: dict[str, Any], controlnet: Any, adapter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, `conditions.npz`, `controlnet`, `adapter` and the control images `edges`."""
    found = save_model(own, tmp_path_factory.mktemp("control"))
    controlnet.save_pretrained(found / "controlnet")
    adapter.save_pretrained(found / "adapter")
    (found / "edges").mkdir()
    for number in range(2):
        Image.fromarray(pixels(number, PIXELS)).save(found / "edges" / f"{number}.png")
    return found


@pytest.fixture(scope="module")
def built(folder: Path, build_in: Callable[..., Built]) -> Built:
    return build_in(folder, **settings({"path": "controlnet", "images": "edges"}))


def _start() -> NDArray[np.float32]:
    return NoiseSource(SEED, (4, SIDE, SIDE)).start(np.arange(NUM))


@pytest.fixture
def pipe(own: dict[str, Any], controlnet: Any) -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    found = StableDiffusionControlNetPipeline(**own, controlnet=controlnet)
    found.set_progress_bar_config(disable=True)
    return found


def _controlled(pipe: Any, **others: Any) -> NDArray[np.float32]:
    images = [Image.fromarray(IMAGE)] * NUM
    return np.asarray(pipe(image=images, **of_conditions(_start()), **others).images)


def test_a_pipeline_with_a_controlnet_keeps_its_latents(built: Built, pipe: Any) -> None:
    expected, plain, network, scheduler = _controlled(pipe), _controlled(pipe, controlnet_conditioning_scale=0.0), pipe.unet, pipe.scheduler
    assert np.abs(expected - plain).max() > 0.1
    use_bundle(pipe, built.folder, precision="fp32")
    np.testing.assert_allclose(_controlled(pipe), expected, atol=1e-3)
    seen: list[int] = []

    def tell(_pipe: Any, step: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        return given

    half = _controlled(pipe, control_guidance_end=0.5, callback_on_step_end=tell)
    assert seen == [0, 1]
    quantized = _controlled(use_bundle(pipe, built.folder))
    assert 0 < np.abs(quantized - expected).max() < np.abs(plain - expected).max()
    pipe.unet, pipe.scheduler = network, scheduler
    np.testing.assert_array_equal(_controlled(pipe), expected)
    np.testing.assert_allclose(half, _controlled(pipe, control_guidance_end=0.5), atol=1e-3)


def test_residuals_come_from_images_or_a_function(built: Built, pipe: Any, controlnet: Any, tmp_path: Path) -> None:
    expected, plain = _controlled(pipe), _controlled(pipe, controlnet_conditioning_scale=0.0)

    @torch.no_grad()
    def network(state: NDArray[Any], timestep: NDArray[Any], conditions: Residuals) -> Residuals:
        given = [torch.from_numpy(np.ascontiguousarray(value)) for value in (state, timestep, conditions["encoder_hidden_states"])]
        image = torch.from_numpy(np.stack([IMAGE.transpose(2, 0, 1) / np.float32(255)] * len(state)))
        down, mid = controlnet(*given, image, return_dict=False)
        return {**{f"down_block_additional_residuals_{i}": one.numpy() for i, one in enumerate(down)}, MID: mid.numpy()}

    asked: dict[str, Any] = {"num": NUM, "seed": SEED, "classes": "all", "precision": "fp32", "latents": True}
    with engines.open_bundle(built.folder) as bundle:
        for given in ({"control_image": IMAGE}, {"control_image": np.stack([IMAGE] * NUM)}, {"control": network}):
            np.testing.assert_allclose(bundle.sample(**asked, **given), expected, atol=1e-3)
        record = bundle._bundle.manifest.model.control
        assert record is not None
        zeros = {one.name: np.zeros((2 * NUM, *one.shape), np.float32) for one in record.inputs}
        np.testing.assert_allclose(bundle.sample(**asked, control=lambda *_: zeros), plain, atol=1e-3)
        with pytest.raises(UsageError, match=r"residuals are not those[^|]*found: +mid_block_additional_residual \[2, 3\]"):
            bundle.sample(**asked, control=lambda *_: {**zeros, MID: np.zeros((2, 3), np.float32)})
        with pytest.raises(UsageError, match=rf"wrong size[^|]*\[{SIDE}, {PIXELS}, 3\]"):
            bundle.sample(**asked, control_image=IMAGE[:SIDE])
        assert np.abs(bundle.sample(**asked) - expected).max() > 0.1  # its own rows come with the images of the calibration
    Image.fromarray(IMAGE).save(tmp_path / "edges.png")
    arguments = ["--num", str(NUM), "--seed", str(SEED), "--classes", "all", "--precision", "fp32", "--format", "npz"]
    out = tmp_path / "out"
    done = CliRunner().invoke(
        main, ["sample", str(built.folder), *arguments, "--control-image", str(tmp_path / "edges.png"), "--output", str(out)]
    )
    assert done.exit_code == 0, done.output
    with np.load(out / "samples.npz") as archive:
        np.testing.assert_allclose(archive["samples"], expected, atol=1e-3)
    assert '"control_images": [' in (out / "samples.json").read_text().replace("\n", "")


def test_own_rows_keep_their_control_images_in_another_table(built: Built) -> None:
    """As when samples of the same row differ in the picture that they repaint."""
    bundle = Bundle.open(built.folder)
    noise, choice, own = NoiseSource(SEED, (4, SIDE, SIDE)), ChainChoice(), load_conditioning(bundle)
    assert own is not None
    rows, samples = np.array([1, 0]), np.arange(2)
    expected = choice.open(bundle, 2).sample(noise, samples, rows)
    found = choice.open(bundle, 2, own.at(rows)).sample(noise, samples, samples)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    without = choice.open(bundle, 2, Conditioning(own.tables, own.null)).sample(noise, samples, rows)
    assert np.abs(without - expected).max() > 0.1


def test_a_bundle_names_its_control_network(built: Built, tmp_path: Path) -> None:
    printed = CliRunner().invoke(export, ["inspect", str(built.folder)]).output
    assert re.search(r"encoder +none", printed)
    assert re.search(r"control +5 residuals, control\.onnx", printed)
    message = "calibrated with the residuals of control.onnx"
    assert message in _control(Bundle.open(built.folder))
    damaged = shutil.copytree(built.folder, tmp_path / "bundle")
    (damaged / "conditioning" / "control.npz").write_bytes(b"no archive")
    with engines.open_bundle(damaged) as bundle, pytest.raises(engines.BundleError, match=r"conditioning/control\.npz"):
        bundle.sample(num=1, latents=True)


MID = "mid_block_additional_residual"


@pytest.mark.slow
def test_a_pipeline_with_an_adapter_keeps_its_latents(
    own: dict[str, Any], adapter: Any, tmp_path: Path, build_in: Callable[..., Built]
) -> None:
    from diffusers import StableDiffusionAdapterPipeline

    built = build_in(save_model(own, tmp_path), **settings({"kind": "t2i_adapter"}))
    pipe = StableDiffusionAdapterPipeline(**own, adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    expected, plain = _controlled(pipe), _controlled(pipe, adapter_conditioning_scale=0.0)
    assert np.abs(expected - plain).max() > 0.01
    np.testing.assert_allclose(_controlled(use_bundle(pipe, built.folder, precision="fp32")), expected, atol=1e-3)
    assert np.isfinite(_controlled(use_bundle(pipe, built.folder))).all()
    with engines.open_bundle(built.folder) as bundle, pytest.raises(UsageError, match="no control network that could read"):
        bundle.sample(num=1, control_image=IMAGE, latents=True)


def test_an_adapter_with_its_images_is_what_the_adapter_computes(own: dict[str, Any], adapter: Any, folder: Path) -> None:
    section = {"kind": "t2i_adapter", "path": "adapter", "images": "edges", "scale": 0.5}
    model = load_model(plan_of(folder / "model", GUIDANCE, prompts=None, conditions="conditions.npz", control=section))
    assert model.control is not None
    rows = np.array([1, 0, 1])
    states = np.random.default_rng(1).standard_normal((3, 4, SIDE, SIDE), dtype=np.float32)
    found = model.feeds(states, np.zeros(3, np.float32), rows, guided=True)
    images = np.stack([pixels(number, PIXELS).transpose(2, 0, 1) for number in [*rows, *rows]]) / np.float32(255)
    with torch.no_grad():
        expected = adapter(torch.from_numpy(images))
        conditions = {"encoder_hidden_states": torch.from_numpy(found["encoder_hidden_states"])}
        residuals = {"down_intrablock_additional_residuals": [0.5 * one for one in expected]}
        out = own["unet"](torch.from_numpy(found["sample"]), 0, **conditions, **residuals).sample
        torch.testing.assert_close(model.adapter(*map(torch.from_numpy, found.values())), out)
    for index, one in enumerate(expected):
        np.testing.assert_allclose(found[f"down_intrablock_additional_residuals_{index}"], 0.5 * one.numpy(), atol=1e-5)
    assert not found["down_intrablock_additional_residuals_2"].any()  # this adapter has nothing for the middle block


def test_what_does_not_belong_together_is_refused(folder: Path, own: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    wider = {**own["unet"].config, "block_out_channels": (16, 32)}
    network = ControlNetModel.from_unet(type(own["unet"]).from_config(wider))
    network.save_pretrained(tmp_path / "net")
    another = {"path": str(tmp_path / "net"), "images": "edges"}
    plan = plan_of(folder / "model", GUIDANCE, prompts=None, conditions="conditions.npz", control=another)
    with pytest.raises(UsageError, match="control network belongs to another model"):
        load_model(plan)
    swapped = {"kind": "t2i_adapter", "path": "controlnet", "images": "edges"}
    with pytest.raises(UsageError, match=r'ControlNetModel\n.*T2IAdapter[^|]*kind to "controlnet"'):
        load_model(plan_of(folder / "model", GUIDANCE, prompts=None, conditions="conditions.npz", control=swapped))
    Image.fromarray(IMAGE[:SIDE]).save(tmp_path / "small.png")
    small = {"path": "controlnet", "images": str(tmp_path / "small.png")}
    with pytest.raises(UsageError, match="wrong size"):
        load_model(plan_of(folder / "model", GUIDANCE, prompts=None, conditions="conditions.npz", control=small))


def test_residuals_of_another_shape_are_refused_in_a_pipeline(built: Built) -> None:
    denoiser = PtqdDenoiser.from_bundle(built.folder)
    timestep, side = next(iter(denoiser._visits)), SIDE // 2
    states, embeddings = torch.zeros(1, 4, SIDE, SIDE), torch.from_numpy(table()["encoder_hidden_states"][:1])
    with pytest.raises(UsageError, match=rf"{MID} of shape \[1, 3, 4, 4\]\n.*\[1, 16, {side}, {side}\]"):
        denoiser(states, timestep, embeddings, mid_block_additional_residual=torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"control": {"path": "controlnet"}}, '"path" and "images" together'),
        ({"path": None, "factory": "a:b", "control": {}}, '"path" together with "control"'),
        ({"inpaint": {"images": "a.png", "masks": "b.png"}}, '"prompts" together with "inpaint"'),
        ({"sizes": [[64, 64], [64, 32]], "control": {}}, 'one size together with "control"'),
    ],
)
def test_plans_that_say_too_little_are_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(tmp_path / "model", prompts=None, **model)


def test_networks_without_residuals_are_refused(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=4, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
    )  # fmt: skip
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match=r"not supported for this network[^|]*diffusers UNet2DModel"):
        load_model(plan_of(tmp_path / "model", 1.0, prompts=None, control={}))


@pytest.mark.slow
def test_sdxl_with_a_controlnet_keeps_its_latents(tmp_path: Path) -> None:
    from diffusers import ControlNetModel, StableDiffusionXLControlNetPipeline

    folder = tiny_text.write_sdxl(tmp_path / "model")
    found = pipeline(folder)
    torch.manual_seed(3)
    network = ControlNetModel.from_unet(found.unet, conditioning_embedding_out_channels=(8, 8))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.5)
    network.save_pretrained(tmp_path / "controlnet")
    image = pixels(4, 16)
    Image.fromarray(image).save(tmp_path / "edges.png")
    plan = plan_of(folder, control={"path": "controlnet", "images": "edges.png"})
    run_build(plan)
    parts_of_pipeline = {name: part for name, part in found.components.items() if name not in ("image_encoder", "feature_extractor")}
    pipe = StableDiffusionXLControlNetPipeline(**parts_of_pipeline, controlnet=network.eval(), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    start = torch.from_numpy(NoiseSource(SEED, (4, SIDE, SIDE)).start(np.arange(NUM)))
    asked = {
        "prompt": list(PROMPTS), "negative_prompt": ["the word"] * NUM, "image": [Image.fromarray(image)] * NUM, "latents": start,
        "num_inference_steps": plan.plan.sampler.steps, "guidance_scale": GUIDANCE, "output_type": "latent",
    }  # fmt: skip
    expected, plain = (np.asarray(pipe(**asked, controlnet_conditioning_scale=scale).images) for scale in (1.0, 0.0))
    assert np.abs(expected - plain).max() > 0.1
    np.testing.assert_allclose(use_bundle(pipe, plan.output_path, precision="fp32")(**asked).images, expected, atol=1e-3)
    assert np.isfinite(np.asarray(use_bundle(pipe, plan.output_path)(**asked).images)).all()
    with engines.open_bundle(plan.output_path) as bundle:
        drawn = bundle.sample(
            NUM, seed=SEED, prompts=PROMPTS, negative_prompt="the word", control_image=image, precision="fp32", latents=True
        )
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
