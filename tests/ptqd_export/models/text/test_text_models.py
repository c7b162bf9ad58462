"""Stable Diffusion and SDXL in miniature against their own pipelines: embeddings, latents, images, and all without a graph."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.errors import PtqdError, UsageError
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import load_model
from ptqd_export.plan import PlanFile
from ptqd_export.stages.build_context import BuildContext
from tests.ptqd_export.models.pipelines import NEGATIVE, PROMPTS, of_modules, of_pipeline, pipeline, plan_of, start
from tests.ptqd_export.models.text import tiny_text

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FAMILIES = ("sd1", "sd2", "sdxl")


def own_copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit_config(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def encoded(folder: Path, negative: str | None) -> dict[str, tuple[Any, Any]]:
    """Rows and null row by conditioning input, as the pipeline encodes them."""
    with torch.no_grad():
        found = pipeline(folder).encode_prompt(
            list(PROMPTS), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt=None if negative is None else [negative] * len(PROMPTS),
        )  # fmt: skip
    names = ("encoder_hidden_states", "text_embeds")
    return {name: (found[2 * i].numpy(), found[2 * i + 1][0].numpy()) for i, name in enumerate(names[: len(found) // 2])}


@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_become_the_embeddings_of_the_pipeline(family: str, negative: str | None, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    conditioning = load_model(plan_of(folder, negative_prompt=negative)).conditioning
    assert conditioning is not None
    assert conditioning.null is not None
    expected = encoded(folder, negative)
    assert expected.keys() == conditioning.tables.keys() - {"time_ids"}
    for name, (rows, null) in expected.items():
        np.testing.assert_allclose(conditioning.tables[name], rows, atol=1e-5)
        np.testing.assert_allclose(conditioning.null[name], null, atol=1e-5)
        assert np.abs(rows[0] - rows[1]).max() > 0.1
        assert np.abs(null).max() > 0.1 or (family, negative) == ("sdxl", None)


def test_sdxl_without_forced_zeros_encodes_the_empty_prompt(tmp_path: Path, sdxl: Path) -> None:
    folder = own_copy(sdxl, tmp_path)
    edit_config(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    conditioning = load_model(plan_of(folder)).conditioning
    assert conditioning is not None
    assert conditioning.null is not None
    np.testing.assert_allclose(conditioning.null["text_embeds"], encoded(folder, None)["text_embeds"][1], atol=1e-5)
    assert np.abs(conditioning.null["text_embeds"]).max() > 0.1


def test_a_learned_word_of_several_vectors_is_written_out(tmp_path: Path, sd1: Path) -> None:
    """Textual inversion: one word of the prompt stands for three tokens, as diffusers saves and reads it."""
    writer = diffusers.StableDiffusionPipeline.from_pretrained(sd1, local_files_only=True)
    torch.manual_seed(1)
    save_file({"<toy>": 2 * torch.randn(3, writer.text_encoder.config.hidden_size)}, tmp_path / "word.safetensors")
    writer.load_textual_inversion(str(tmp_path), weight_name="word.safetensors", token="<toy>")
    writer.save_pretrained(tmp_path / "model")
    prompts = ["a photo of <toy>", "cat"]
    conditioning = load_model(plan_of(tmp_path / "model", prompts=prompts)).conditioning
    assert conditioning is not None
    with torch.no_grad():
        expected, _ = pipeline(tmp_path / "model").encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
        first, _ = pipeline(tmp_path / "model").encode_prompt(["a photo of cat", "cat"], "cpu", 1, do_classifier_free_guidance=False)
    np.testing.assert_allclose(conditioning.tables["encoder_hidden_states"], expected, atol=1e-5)
    assert (first - expected).abs().max() > 0.1


def test_refiner_is_told_the_scores_of_prompt_and_negative_prompt(tmp_path: Path) -> None:
    folder = tiny_text.write_refiner(tmp_path / "model")
    conditioning = load_model(plan_of(folder)).conditioning
    assert conditioning is not None
    assert conditioning.null is not None
    theirs = pipeline(folder)
    size = (theirs.unet.config.sample_size * theirs.vae_scale_factor,) * 2
    expected, negative = theirs._get_add_time_ids(
        size, (0, 0), size, 6.0, 2.5, size, (0, 0), size, dtype=torch.float32, text_encoder_projection_dim=12
    )
    assert conditioning.tables["time_ids"].tolist() == expected.tolist() * len(PROMPTS)
    assert conditioning.null["time_ids"].tolist() == negative[0].tolist()
    embeddings, _, pooled, _ = theirs.encode_prompt(list(PROMPTS))
    np.testing.assert_allclose(conditioning.tables["encoder_hidden_states"], embeddings.detach(), atol=1e-5)
    np.testing.assert_allclose(conditioning.tables["text_embeds"], pooled.detach(), atol=1e-5)


def test_sdxl_is_told_the_size_of_its_images(sdxl: Path) -> None:
    conditioning = load_model(plan_of(sdxl)).conditioning
    assert conditioning is not None
    assert conditioning.null is not None
    height = width = 8 * 2  # latents of 8, and a first stage of two blocks
    assert conditioning.tables["time_ids"].tolist() == [[height, width, 0, 0, height, width]] * len(PROMPTS)
    assert conditioning.null["time_ids"].tolist() == [height, width, 0, 0, height, width]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_ends_where_the_pipeline_ends(family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(family)
    model = load_model(plan_of(folder, negative_prompt=NEGATIVE))
    latents = of_modules(model, len(PROMPTS))
    begin = start(model.sample_shape, len(PROMPTS))
    expected = of_pipeline(folder, PROMPTS, NEGATIVE, begin, "latent")
    np.testing.assert_allclose(latents, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected - begin).max() > 0.1
    assert np.abs(expected[0] - begin[0] - expected[1] + begin[1]).max() > 1e-3
    assert model.decoder is not None
    with torch.no_grad():
        images = model.decoder(torch.from_numpy(expected)).clamp(-1, 1).numpy()
    np.testing.assert_allclose(images, of_pipeline(folder, PROMPTS, NEGATIVE, begin, "pt"), atol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "options"),
    [
        ("dpm++2m", "DPMSolverMultistepScheduler", {}),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("euler", "EulerDiscreteScheduler", {}),
        ("euler", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("plms", "PNDMScheduler", {"skip_prk_steps": True}),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_chain_of_another_scheduler_ends_where_the_pipeline_ends(
    family: str, sampler: str, scheduler: str, options: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = own_copy(request.getfixturevalue(family), tmp_path)
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    getattr(diffusers, scheduler).from_config(settings, **options).save_pretrained(folder / "scheduler")
    edit_config(folder / "model_index.json", scheduler=["diffusers", scheduler])
    model = load_model(plan_of(folder))
    begin = start(model.sample_shape, len(PROMPTS))
    expected = of_pipeline(folder, PROMPTS, None, begin, "latent")
    assert type(pipeline(folder).scheduler).__name__ == scheduler
    np.testing.assert_allclose(of_modules(model, len(PROMPTS), sampler), expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(expected - begin).max() > 0.1


def test_prediction_of_v_is_read_from_the_scheduler(sd1: Path, sd2: Path) -> None:
    kinds = [load_model(plan_of(folder)).noise_schedule.prediction_type for folder in (sd1, sd2)]
    assert kinds == ["epsilon", "v_prediction"]


def test_half_precision_variants_of_every_part_are_read(tmp_path: Path) -> None:
    folder = tiny_text.write_sdxl(tmp_path / "model", variant="fp16")
    assert {path.suffixes[0] for path in folder.rglob("*.safetensors")} == {".fp16"}
    model = load_model(plan_of(folder))
    assert {parameter.dtype for parameter in model.adapter.parameters()} == {torch.float32}
    assert model.conditioning is not None
    np.testing.assert_allclose(model.conditioning.tables["text_embeds"], encoded(folder, None)["text_embeds"][0], atol=1e-5)
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")["conv_in.weight"]
    assert stored.dtype == torch.float16
    assert torch.equal(model.adapter.network.get_parameter("conv_in.weight"), stored.float())


# LoRA


def write_lora(folder: Path) -> Path:
    """Changes one layer of every part of SDXL, as kohya's trainers name them."""
    torch.manual_seed(1)
    layers = {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (16, 40),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (32, 16),
        "lora_te2_text_model_encoder_layers_0_self_attn_v_proj": (24, 24),
    }
    tensors = {f"{name}.lora_down.weight": torch.randn(2, size) for name, (_, size) in layers.items()}
    tensors |= {f"{name}.lora_up.weight": torch.randn(size, 2) for name, (size, _) in layers.items()}
    save_file(tensors | {f"{name}.alpha": torch.tensor(1.0) for name in layers}, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def test_a_lora_changes_the_networks_as_if_it_were_fused_into_their_files(tmp_path: Path, sdxl: Path) -> None:
    folder = own_copy(sdxl, tmp_path / "plain")
    lora = load_file(write_lora(folder.parent))
    plan = plan_of(folder, lora={"path": "lora.safetensors", "scale": 0.5})
    fused = own_copy(sdxl, tmp_path / "fused")
    for file, key, name in (
        ("unet/diffusion_pytorch_model", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "lora_unet_"),
        ("text_encoder/model", "text_model.encoder.layers.0.mlp.fc1", "lora_te1_"),
        ("text_encoder_2/model", "text_model.encoder.layers.0.self_attn.v_proj", "lora_te2_"),
    ):
        weights = load_file(fused / f"{file}.safetensors")
        (stored,) = [found for found in weights if found.removesuffix(".weight").endswith(key.removeprefix("text_model."))]
        short = name + key.replace(".", "_")
        change = lora[f"{short}.lora_up.weight"] @ lora[f"{short}.lora_down.weight"]
        save_file(weights | {stored: weights[stored] + 0.5 * 1 / 2 * change}, fused / f"{file}.safetensors", {"format": "pt"})
    found, expected, before = load_model(plan), load_model(plan_of(fused)), load_model(plan_of(sdxl))
    for name in ("encoder_hidden_states", "text_embeds"):
        tables = [model.conditioning.tables[name] for model in (found, expected, before) if model.conditioning is not None]
        np.testing.assert_allclose(tables[0], tables[1], atol=1e-5)
        assert np.abs(tables[0] - tables[2]).max() > 0.1
    latents = [of_modules(model, 2) for model in (found, expected, before)]
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-5)
    assert np.abs(latents[0] - latents[2]).max() > 1e-3


def test_a_lora_of_an_encoder_that_the_model_lacks_is_refused(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    write_lora(tmp_path)
    with pytest.raises(UsageError, match="layers of text_encoder_2"):
        load_model(plan_of(folder, lora={"path": "lora.safetensors"}))


def write_adapter(folder: Path, layer: str, size: int, **config: Any) -> Path:
    """An adapter as PEFT saves it: the keys do not say for which network."""
    folder.mkdir()
    torch.manual_seed(1)
    keys = (f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight")
    save_file({keys[0]: torch.randn(2, 16), keys[1]: torch.randn(size, 2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


@pytest.mark.parametrize(
    ("layer", "size", "part"),
    [
        ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q", 16, "unet"),
        ("text_model.encoder.layers.0.mlp.fc1", 32, "text_encoder"),
    ],
)
def test_an_adapter_of_peft_goes_to_the_network_that_has_its_layers(tmp_path: Path, sdxl: Path, layer: str, size: int, part: str) -> None:
    folder = own_copy(sdxl, tmp_path)
    adapter = write_adapter(tmp_path / "adapter", layer, size)
    found, before = load_model(plan_of(folder, lora={"path": "adapter"})), load_model(plan_of(sdxl))
    assert found.prompts is not None
    assert found.prompts.lora is not None
    assert list(found.prompts.lora.layers) == [part]
    assert {adapter / "adapter_model.safetensors", adapter / "adapter_config.json"} < set(found.files)
    weights = [model.adapter.network.state_dict() for model in (found, before)]
    assert {name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])} == (
        {f"{layer}.weight"} if part == "unet" else set()
    )
    assert (part == "unet") == np.array_equal(*(rows(model)["encoder_hidden_states"] for model in (found, before)))


def rows(model: LoadedModel) -> Mapping[str, Any]:
    assert model.conditioning is not None
    return model.conditioning.tables


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    write_adapter(tmp_path / "adapter", "blocks.0.attn.qkv", 16)
    with pytest.raises(UsageError, match=r"0 in unet \(not blocks.0.attn.qkv\), 0 in text_encoder \(not blocks.0.attn.qkv\)"):
        load_model(plan_of(folder, lora={"path": "adapter"}))


def test_a_lora_of_text_encoders_alone_needs_prompts(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    key = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 16), f"{key}.lora_up.weight": torch.ones(32, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(UsageError, match=r"layers of text_encoder, and no model\.prompts"):
        load_model(plan_of(folder, prompts=None, lora={"path": "lora.safetensors"}))


# What a plan can be wrong about


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"prompts": []}, "model.prompts"),
        ({"prompts": ["a"], "conditions": "conditions.npz"}, '"prompts" or "conditions", not both'),
        ({"prompts": None, "negative_prompt": "a"}, '"prompts" together with "negative_prompt"'),
        ({"path": None, "factory": "package.module:function"}, 'a "path" together with "prompts" or "lora"'),
        ({"lora": {"scale": 1.0}}, "model.lora.path"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(tmp_path / "model", **model)


def identity(plan: PlanFile) -> tuple[str, str]:
    """What the stages of a build know of a model."""
    context = BuildContext(plan)
    return context.fingerprint, json.dumps(context.model_settings)


def test_stages_know_prompts_and_lora(tmp_path: Path, sdxl: Path) -> None:
    folder = own_copy(sdxl, tmp_path)
    (tmp_path / "prompts.txt").write_text("a cat\n")
    write_lora(tmp_path)
    settings: list[dict[str, Any]] = [
        {}, {"prompts": ["a"]}, {"negative_prompt": "a"}, {"prompts": "prompts.txt"},
        {"lora": {"path": "lora.safetensors"}}, {"lora": {"path": "lora.safetensors", "scale": 0.5}},
    ]  # fmt: skip
    found = [identity(plan_of(folder, **one)) for one in settings]
    (tmp_path / "prompts.txt").write_text("a dog\n")
    found.append(identity(plan_of(folder, prompts="prompts.txt")))
    assert len(set(found)) == len(found)
    assert identity(plan_of(folder)) == found[0]


def test_prompts_are_read_from_a_file(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    written, read = (load_model(plan_of(folder, **one)).conditioning for one in ({}, {"prompts": "prompts.txt"}))
    assert written is not None
    assert read is not None
    np.testing.assert_array_equal(written.tables["encoder_hidden_states"], read.tables["encoder_hidden_states"])


def test_prepared_embeddings_still_do_without_text_encoders(tmp_path: Path, sdxl: Path) -> None:
    folder = own_copy(sdxl, tmp_path)
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / name)
    tables = {"time_ids": np.ones((3, 6)), "text_embeds": np.ones((3, 12)), "encoder_hidden_states": np.ones((3, 7, 40))}
    np.savez(tmp_path / "conditions.npz", allow_pickle=False, **{name: value.astype(np.float32) for name, value in tables.items()})
    model = load_model(plan_of(folder, prompts=None, conditions="conditions.npz"))
    assert model.prompts is None
    assert model.adapter.conditions == ("encoder_hidden_states", "text_embeds", "time_ids")
    with pytest.raises(UsageError, match="The model has no text encoder"):
        load_model(plan_of(folder))


def test_prompts_of_a_consistency_model_come_with_the_embedding_of_the_plans_guidance(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    edit_config(folder / "unet" / "config.json", time_cond_proj_dim=32)
    network = diffusers.UNet2DConditionModel.from_config(json.loads((folder / "unet" / "config.json").read_text()))
    network.save_pretrained(folder / "unet")
    model = load_model(plan_of(folder))
    assert model.embeds_guidance
    assert model.adapter.conditions == ("encoder_hidden_states", "timestep_cond")
    assert model.conditioning is not None
    guidance = plan_of(folder).plan.sampler.guidance
    expected = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([guidance - 1]), 32)
    np.testing.assert_array_equal(model.conditioning.tables["timestep_cond"], expected.numpy().repeat(len(PROMPTS), 0))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ("text_encoder", {"use_attention_mask": True}, "use_attention_mask"),
        ("unet", {"addition_embed_type": "image"}, "addition_embed_type = image"),
        ("unet", {"cross_attention_dim": 24}, "does not fit the model"),
    ],
)
def test_what_the_pipelines_own_code_would_do_otherwise_is_refused(
    tmp_path: Path, sd1: Path, part: str, change: dict[str, Any], message: str
) -> None:
    folder = own_copy(sd1, tmp_path)
    edit_config(folder / part / "config.json", **change)
    with pytest.raises(UsageError, match=message):
        load_model(plan_of(folder))


@pytest.mark.parametrize("where", ["model_index.json", "tokenizer/tokenizer_config.json"])
def test_a_tokenizer_of_another_class_is_refused(tmp_path: Path, sd1: Path, where: str) -> None:
    folder = own_copy(sd1, tmp_path)
    if where == "model_index.json":
        edit_config(folder / where, tokenizer=["transformers", "T5TokenizerFast"])
    else:
        (folder / "model_index.json").unlink()
        edit_config(folder / where, tokenizer_class="T5TokenizerFast")
    with pytest.raises(UsageError, match=r"(?s)tokenizer is not supported.*T5TokenizerFast.*CLIPTokenizer or CLIPTokenizerFast"):
        load_model(plan_of(folder))


def test_without_prompts_or_embeddings_the_message_names_both(sd1: Path) -> None:
    with pytest.raises(UsageError, match=r"as model\.conditions, or list prompts as model\.prompts"):
        load_model(plan_of(sd1, prompts=None))


def test_weights_that_are_no_safetensors_are_read_too(tmp_path: Path, sd1: Path) -> None:
    folder = own_copy(sd1, tmp_path)
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    (folder / "text_encoder" / "model.safetensors").unlink()
    torch.save(weights | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "text_encoder" / "pytorch_model.bin")
    found, expected = (load_model(plan_of(one)).conditioning for one in (folder, sd1))
    assert found is not None
    assert expected is not None
    np.testing.assert_array_equal(found.tables["encoder_hidden_states"], expected.tables["encoder_hidden_states"])


def test_an_encoder_with_damaged_weights_is_named(tmp_path: Path, sd1: Path) -> None:
    weights = own_copy(sd1, tmp_path) / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("layers.0.mlp.fc1.weight"))
    tensors[name][0, 0] = torch.inf
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(PtqdError, match=r"(?s)contain NaN or infinity.*text_encoder: .*layers.0.mlp.fc1.weight, 1 of"):
        load_model(plan_of(weights.parents[1]))
