"""What a folder's configurations declare: read as diffusers reads them, said where they mean something else, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UsageError
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.base import Declaration
from ptqd_export.models.load import declare_model, load_model
from ptqd_export.plan import Plan, PlanFile

UNET = {
    "_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8, 8],
    "layers_per_block": 1, "norm_num_groups": 4, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2,
}  # fmt: skip
CROSS = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [8, 8],
    "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
XL = CROSS | {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
DIT = {
    "_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "sample_size": 8, "in_channels": 4, "out_channels": 8,
    "num_embeds_ada_norm": 10, "num_layers": 1, "patch_size": 2, "attention_head_dim": 4, "num_attention_heads": 2,
    "attention_type": "default", "activation_fn": "gelu-approximate", "norm_elementwise_affine": False,
}  # fmt: skip
VAE = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8], "norm_num_groups": 4}
DDIM = {"_class_name": "DDIMScheduler", "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": True}


def write(folder: Path, *, index: Mapping[str, Any] | None = None, scheduler: Mapping[str, Any] = DDIM, **parts: Mapping[str, Any]) -> Path:
    """Write the configurations of a pipeline, without weights."""
    files = {f"{name}/config.json": config for name, config in parts.items()} | {"scheduler/scheduler_config.json": scheduler}
    for name, content in (files | ({} if index is None else {"model_index.json": index})).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def declared(folder: Path) -> Declaration:
    return declare_model(str(folder), folder.parent)


def index_of(pipeline: str, **parts: str | None) -> dict[str, Any]:
    listed = {name: [None if kind is None else "diffusers", kind] for name, kind in parts.items()}
    return {"_class_name": pipeline, "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"], **listed}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"unet": UNET | {"gate_scale": 2}}, "a key that its class does not know.*gate_scale = 2.*UNet2DModel"),
        ({"unet": CROSS, "vae": VAE | {"latent_gain": 3.0}}, "a key that its class does not know.*latent_gain = 3.0.*AutoencoderKL"),
        ({"unet": UNET | {"quantization_config": {"load_in_8bit": True}}}, "is quantized already.*load_in_8bit"),
        ({"unet": UNET | {"class_embed_type": "timestep"}}, "inputs that are not supported.*class_embed_type = timestep"),
        ({"unet": UNET | {"class_embed_type": "identity", "num_class_embeds": 10}}, "class_embed_type = identity"),
        ({"unet": UNET | {"time_embedding_type": "fourier"}}, "inputs that are not supported.*time_embedding_type = fourier"),
        ({"unet": CROSS | {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 6}}, "encoder_hid_dim_type = image_proj"),
        ({"unet": CROSS | {"encoder_hid_dim_type": "text_proj"}}, "cannot build the network.*encoder_hid_dim"),
        ({"unet": UNET | {"down_block_types": ["DownBlock2D", "MyBlock"]}}, "cannot build the network.*MyBlock"),
        ({"unet": UNET | {"sample_size": [8, 9]}}, r"not take samples of the size.*\[3, 8, 9\].*such as \[3, 8, 10\]"),
        ({"unet": UNET | {"sample_size": [8]}}, r"sample_size = \[8\].*a number, or \[height, width\]"),
        ({"unet": UNET | {"sample_size": 8.0}}, r"sample_size = 8.0"),
        ({"unet": CROSS, "vae": VAE | {"latent_channels": 16}}, "does not decode the samples.*16 channels.*with 4"),
        ({"unet": CROSS | {"cross_attention_dim": [8, 16]}}, r"embeddings of different widths.*\[8, 16\]"),
        ({"unet": UNET, "scheduler": {"_class_name": "IPNDMScheduler"}}, "unsupported noise schedule.*IPNDM"),
        ({"transformer": {"_class_name": "WanTransformer3DModel"}}, "not supported.*WanTransformer3DModel.*one of UNet2D.*model.factory"),
        ({"decoder": {"_class_name": "StableCascadeUNet"}}, r"no denoiser.*decoder \(StableCascadeUNet\).*model.factory"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}") as caught:
        declared(write(tmp_path / "model", **parts))
    assert "bug" not in str(caught.value)


def test_four_levels_do_not_take_28_pixels(tmp_path: Path) -> None:
    levels = {"block_out_channels": [8] * 4, "down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4}
    with pytest.raises(UsageError, match=r"(?s)\[3, 28, 28\].*such as \[3, 32, 32\]"):
        declared(write(tmp_path / "model", unet=UNET | levels | {"sample_size": 28}))


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({}, 8),
        ({"encoder_hid_dim": 6}, 6),
        ({"encoder_hid_dim": 6, "encoder_hid_dim_type": "text_proj"}, 6),
        ({"cross_attention_dim": [8, 8]}, 8),
    ],
)
def test_width_of_the_embeddings_is_what_the_network_takes(tmp_path: Path, config: dict[str, Any], width: int) -> None:
    """The network runs on shapes: another width would be refused."""
    (embeddings,) = declared(write(tmp_path / "model", unet=CROSS | config)).inputs
    assert embeddings.shape == ("tokens", width)


@pytest.mark.parametrize(("refines", "sizes"), [(True, 5), (False, 6)])
def test_refiner_takes_an_aesthetic_score_in_place_of_the_target_size(tmp_path: Path, refines: bool, sizes: int) -> None:
    index = index_of("StableDiffusionXLImg2ImgPipeline") | {"requires_aesthetics_score": refines}
    unet = XL | {"projection_class_embeddings_input_dim": sizes * 8 + 12}
    _, pooled, time_ids = declared(write(tmp_path / "model", unet=unet, index=index)).inputs
    assert (pooled.shape, time_ids.shape) == ((12,), (sizes,))


@pytest.mark.parametrize(("dim", "sizes"), [(5 * 8 + 1280, 5), (6 * 8 + 1280, 6)])
def test_refiner_without_an_index_is_known_by_the_published_widths(tmp_path: Path, dim: int, sizes: int) -> None:
    _, pooled, time_ids = declared(write(tmp_path / "model", unet=XL | {"projection_class_embeddings_input_dim": dim})).inputs
    assert (pooled.shape, time_ids.shape) == ((1280,), (sizes,))


def test_transformers_old_class_name_is_a_dit(tmp_path: Path) -> None:
    found = declared(write(tmp_path / "model", transformer=DIT))
    assert (found.family, found.sample_shape, found.null_class) == ("diffusers DiTTransformer2DModel", (4, 8, 8), 10)


PIXART = {
    **DIT, "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "cross_attention_dim": 8, "caption_channels": 6,
}  # fmt: skip
SD3 = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "in_channels": 16, "out_channels": 16, "num_layers": 1,
    "attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 6, "caption_projection_dim": 8, "pooled_projection_dim": 5,
    "pos_embed_max_size": 12,
}  # fmt: skip
FLUX = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 6, "pooled_projection_dim": 5, "axes_dims_rope": [2, 2, 4], "guidance_embeds": True,
}  # fmt: skip
QWEN = {
    "_class_name": "QwenImageTransformer2DModel", "in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 6, "axes_dims_rope": [2, 2, 4],
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "shift": 3.0}


def test_old_class_name_of_another_transformer_is_read_as_todays(tmp_path: Path) -> None:
    found = declared(write(tmp_path / "model", transformer=PIXART))
    assert (found.family, found.sample_shape) == ("diffusers PixArtTransformer2DModel", (4, 8, 8))
    assert list(map(str, found.inputs)) == [
        "encoder_hidden_states: float32 [rows, tokens, 6]", "encoder_attention_mask: int64 [rows, tokens]",
    ]  # fmt: skip


def test_transformer_without_a_size_has_its_pipelines_and_a_shift_for_it(tmp_path: Path) -> None:
    found = declared(write(tmp_path / "model", transformer=FLUX, scheduler=FLOW))
    assert (found.sample_shape, found.noise_schedule.last_sigma) == ((16, 128, 128), "step")
    assert found.noise_schedule.mu == pytest.approx(1.15)
    assert ([one.name for one in found.asked], found.embeds_guidance) == (["encoder_hidden_states", "pooled_projections"], True)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"transformer": FLUX | {"in_channels": 384, "out_channels": 64}}, "takes more than a state.*in_channels = 384, out_channels = 64"),
        ({"transformer": SD3 | {"sample_size": 7}}, "size of the images does not fit.*sample_size = 7.*multiples of 16 pixels"),
        ({"transformer": SD3 | {"sample_size": 32}}, "does not take"),
        ({"transformer": QWEN | {"zero_cond_t": True}}, "takes more than a state.*zero_cond_t of QwenImageTransformer2DModel"),
        ({"transformer": SD3, "vae": VAE}, "first stage does not decode.*with 4 channels.*with 16"),
        ({"transformer": SD3, "vae": {"_class_name": "AutoencoderKLWan"}}, "first stage is not supported.*AutoencoderKLWan"),
        ({"transformer": QWEN, "vae": {"_class_name": "AutoencoderKLQwenImage"}}, "first stage does not decode.*with 16 channels.*with 4"),
        ({"transformer": SD3, "vae": {"_class_name": "AutoencoderDC"}}, "first stage does not decode.*with 32 channels.*with 16"),
        ({"transformer": SD3 | {"_class_name": "CogView4Transformer2DModel"}}, "network is not supported.*CogView4.*SD3Transformer2DModel"),
        ({"transformer": SD3 | {"_class_name": "Lumina2Transformer2DModel"}}, "Lumina2Transformer2DModel, which needs guidance that keeps"),
        (
            {"transformer": SD3 | {"_class_name": "WanTransformer3DModel"}},
            "WanTransformer3DModel, which needs states with an axis of frames",
        ),
        ({"transformer": SD3 | {"_class_name": "LTXVideoTransformer3DModel"}}, "which needs states with an axis of frames"),
        ({"transformer": SD3 | {"_class_name": "HunyuanDiT2DModel"}}, "HunyuanDiT2DModel, which needs prompts that a BERT.*model.factory"),
    ],
)
def test_transformer_that_does_not_fit_is_refused_by_name(parts: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        declared(write(tmp_path / "model", scheduler=FLOW, **parts))


@pytest.mark.parametrize(
    ("kind", "section", "message"),
    [
        ("transformer", {"size": [100, 128]}, r"size of the images does not fit.*\[100, 128\] pixels.*multiples of 16 pixels"),
        ("transformer", {"size": [1024, 128]}, r"does not take images of this size.*\[1024, 128\] pixels.*pos_embed_max_size"),
        ("unet", {"size": [64, 65]}, r"size of the images does not fit.*\[64, 65\] pixels"),
        ("transformer", {"prompts": ["a fox"]}, "model has no text encoder.*no text_encoder/, text_encoder_2/ in"),
        ("transformer", {"size": [128, 128]}, "model.conditions"),
    ],
)
def test_plan_that_does_not_fit_a_model_is_refused(kind: str, section: dict[str, Any], message: str, tmp_path: Path) -> None:
    parts = {"transformer": SD3} if kind == "transformer" else {"unet": UNET}
    write(tmp_path / "model", scheduler=FLOW if kind == "transformer" else DDIM, **parts)
    plan = {
        "model": {"path": "model", **section}, "sampler": {"name": "flow-euler", "steps": 4}, "precisions": ["w8a8"],
        "target": {"name": "onnxruntime"}, "output": "bundle",
    }  # fmt: skip
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load_model(PlanFile(Plan.model_validate(plan), tmp_path, tmp_path / "bundle"))


def test_keys_that_say_nothing_are_read_over(tmp_path: Path) -> None:
    averaged = {
        "decay": 0.9999,
        "optimization_step": 5000,
        "power": 0.75,
        "use_ema_warmup": True,
        "_name_or_path": "x",
        "sample_rate": None,
    }
    assert declared(write(tmp_path / "model", unet=UNET | averaged)).notes == ()


def test_another_sampler_is_named_in_the_plan(tmp_path: Path) -> None:
    scheduler = DDIM | {"_class_name": "UniPCMultistepScheduler", "solver_order": 4, "clip_denoised_at": 3}
    plan = starter_plan(write(tmp_path / "model", unet=UNET, scheduler=scheduler), "onnxruntime", tmp_path)
    assert plan.sampler.name == "unipc2"
    assert "UniPCMultistepScheduler of order 4 has no sampler here; unipc2 takes its place" in plan.comments[0]
    assert "keys that its class does not know; they are ignored, as in diffusers" in plan.comments[1]
    assert "clip_denoised_at = 3" in plan.comments[1]


def test_pipelines_index_decides_the_schedulers_class(tmp_path: Path) -> None:
    index = index_of("DDPMPipeline", scheduler="DDPMScheduler")
    found = declared(write(tmp_path / "model", unet=UNET, index=index, scheduler=DDIM | {"_class_name": "EulerDiscreteScheduler"}))
    assert found.sampler == "ddpm"
    assert found.notes == ("the scheduler is DDPMScheduler, as model_index.json says; scheduler_config.json names another class",)


def test_part_that_the_pipeline_does_without_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", unet=CROSS, vae=VAE | {"latent_channels": 16}, index=index_of("LDMPipeline", vae=None))
    assert declared(folder).sample_shape == (4, 8, 8)


def test_unknown_pipeline_is_said(tmp_path: Path) -> None:
    found = declared(write(tmp_path / "model", unet=UNET, index=index_of("MarigoldDepthPipeline")))
    assert found.notes == ("MarigoldDepthPipeline is unknown: what it does around its network is left out",)


def test_pipelines_that_edit_pictures_are_refused_or_said(tmp_path: Path) -> None:
    """Qwen-Image-Edit cannot do without the picture, FLUX.1 Kontext can."""

    def folder(pipeline: str, network: Mapping[str, Any]) -> Path:
        parts = {"transformer": network, "scheduler": FLOW}
        index = index_of(pipeline, unet=None, **{name: str(part["_class_name"]) for name, part in parts.items()})
        return write(tmp_path / pipeline, index=index, **parts)

    (note,) = declared(folder("FluxKontextPipeline", FLUX)).notes
    assert note.startswith("FluxKontextPipeline can edit a picture, whose tokens its network reads")
    with pytest.raises(UsageError, match="QwenImageEditPlusPipeline, whose network reads the tokens of a picture beside the state"):
        declared(folder("QwenImageEditPlusPipeline", QWEN))


def test_pipeline_that_starts_from_an_image_is_said(tmp_path: Path) -> None:
    found = declared(write(tmp_path / "model", unet=CROSS, index=index_of("StableDiffusionXLImg2ImgPipeline")))
    assert found.notes == ("StableDiffusionXLImg2ImgPipeline starts from an image, and `ptqd-run sample` from noise",)


def test_configuration_beside_the_index_is_not_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", unet=UNET, index=index_of("DDIMPipeline"))
    (folder / "config.json").write_text('{"model_type": "stable-diffusion"}')
    assert declared(folder).family == "diffusers UNet2DModel"


@pytest.mark.filterwarnings("ignore:The configuration file of:FutureWarning")
@pytest.mark.parametrize(("version", "size"), [("0.6.0", 64), ("0.10.0", 8)])
def test_stable_diffusion_corrects_old_files_as_its_pipeline_does(tmp_path: Path, version: str, size: int) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    scheduler = DDIM | {"steps_offset": 0}
    folder = write(
        tmp_path / "model", unet=CROSS | {"_diffusers_version": version}, scheduler=scheduler, index=index_of("StableDiffusionPipeline")
    )
    found = declared(folder)
    network = UNet2DConditionModel.from_config(dict(CROSS))
    network.register_to_config(_diffusers_version=version)
    pipeline = StableDiffusionPipeline(None, None, None, network, DDIMScheduler.from_config(scheduler), None, None, None, False)
    theirs = pipeline.scheduler.config
    assert (theirs["steps_offset"], theirs["clip_sample"]) == (1, False)
    assert (found.noise_schedule.steps_offset, found.noise_schedule.clip_sample) == (1, False)
    assert found.sample_shape == (4, size, size)
    assert pipeline.unet.config.sample_size == size
    assert "StableDiffusionPipeline replaces values of scheduler_config.json" in found.notes[0]


def test_inpainting_gets_prompts_and_the_plan_says_which_pictures_it_wants(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", unet=CROSS | {"in_channels": 9}, text_encoder={"architectures": ["CLIPTextModel"]})
    plan = starter_plan(folder, "onnxruntime", tmp_path)
    assert plan.model.prompts
    assert "name pictures and masks as model.inpaint" in plan.comments[0]
