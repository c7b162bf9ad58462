"""From a pipeline's folder to pictures of prompts: builds, and what `ptqd-run sample --prompt` makes of them."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import engines
from engines.apps.evaluate.scorers.clip_scorer import ClipScorer
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.cli import main
from engines.networks.decoder import open_decoder
from engines.networks.prompts import open_text
from ptqd_export.cli import main as export
from ptqd_export.commands.extractors.clip import write_clip
from ptqd_export.models.load import load_model
from ptqd_export.plan import PlanFile
from ptqd_export.stages.run_build import run_build
from tests.engines.apps.serve.in_process import Server
from tests.ptqd_export.models.pipelines import GUIDANCE, NEGATIVE, PROMPTS, SEED, STEPS, Array, of_pipeline, pipeline, plan_of, start
from tests.ptqd_export.models.text import tiny_text

OTHERS = ("the dog of caf\u00e9, \u732b!", "word " * 100, "")
"""Prompts that nothing was calibrated with."""

ATTENTION = "transformer_blocks.0.attn1.to_q"


def built(plan: PlanFile) -> PlanFile:
    run_build(plan)
    return plan


def sample(bundle: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """Sample; the record, and what was printed."""
    done = CliRunner().invoke(main, ["sample", str(bundle), "--seed", str(SEED), "--output", str(output), *arguments])
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = {**json.loads((output / "samples.json").read_text()), "printed": done.output}
    return record


def check_against_pipeline(plan: PlanFile, tmp_path: Path, negative: str | None) -> None:
    """Latents and images at full precision, of prompts that nothing was calibrated with."""
    options = [f"--prompt={prompt}" for prompt in OTHERS] + ([] if negative is None else ["--negative-prompt", negative])
    sample(plan.output_path, tmp_path / "npz", "--num", "3", "--precision", "fp32", "--format", "npz", *options)
    with np.load(tmp_path / "npz" / "samples.npz") as archive:
        latents, pixels, rows = archive["samples"], archive["images"], archive["rows"]
    with engines.open_bundle(plan.output_path) as bundle, pytest.warns(UserWarning, match="too long for the text encoder: prompts 1"):
        drawn = bundle.sample(3, seed=SEED, prompts=OTHERS, negative_prompt=negative, precision="fp32", latents=True)
    np.testing.assert_array_equal(drawn, latents)
    begin = start(latents.shape[1:], len(OTHERS))
    expected, images = (of_pipeline(plan.model_path, OTHERS, negative, begin, kind) for kind in ("latent", "pt"))
    assert rows.tolist() == [0, 1, 2]
    np.testing.assert_allclose(latents, expected, atol=1e-3)
    assert np.abs(expected - begin).max() > 0.1
    decoded = open_decoder(Bundle.open(plan.output_path), "target")(latents)
    np.testing.assert_allclose(decoded.clip(-1, 1), images, atol=1e-3)
    np.testing.assert_allclose(pixels / 127.5 - 1, images, atol=1 / 255 + 1e-3)


def check_embeddings(plan: PlanFile, negative: str | None) -> None:
    """The graphs' embeddings against those of the pipeline."""
    bundle = Bundle.open(plan.output_path)
    found = open_text(bundle).condition(OTHERS, negative)
    with torch.no_grad():
        expected = pipeline(plan.model_path).encode_prompt(
            list(OTHERS), device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt=None if negative is None else [negative] * len(OTHERS),
        )  # fmt: skip
    assert found.null is not None
    for i, name in enumerate(("encoder_hidden_states", "text_embeds")[: len(expected) // 2]):
        np.testing.assert_allclose(found.tables[name], expected[2 * i].numpy(), atol=1e-4)
        np.testing.assert_allclose(found.null[name], expected[2 * i + 1][0].numpy(), atol=1e-4)


def check_calibrated_rows(plan: PlanFile) -> None:
    """The bundle's own rows are the plan's prompts."""
    bundle, model = Bundle.open(plan.output_path), load_model(plan)
    record = bundle.manifest.model.conditioning
    assert model.conditioning is not None
    assert record is not None
    assert (record.rows, record.file, record.null_class) == (len(PROMPTS), "conditioning/default.npz", None)
    with np.load(bundle.path("conditioning/default.npz")) as stored:
        assert set(stored) == {prefix + name for name in model.adapter.conditions for prefix in ("", "null.")}
        for name, table in model.conditioning.tables.items():
            np.testing.assert_array_equal(stored[name], table)


@pytest.fixture(scope="module")
def sdxl_plan(sdxl: Path) -> PlanFile:
    tiny_text.write_preview(sdxl.parent / "preview")
    return built(plan_of(sdxl, encoder=True, preview="preview"))


def test_sdxl_bundles_hold_graphs_and_tokenizers(sdxl_plan: PlanFile) -> None:
    bundle = Bundle.open(sdxl_plan.output_path)
    assert bundle.manifest.model.text is not None
    text = bundle.manifest.model.text.model_dump(exclude_defaults=True)
    assert text == {
        "encoders": (
            {"graph": "text/text_encoder.onnx", "tokenizer": "text/tokenizer.json", "tokens": 77, "inputs": ("encoder_hidden_states",)},
            {
                "graph": "text/text_encoder_2.onnx", "tokenizer": "text/tokenizer_2.json", "tokens": 77,
                "inputs": ("encoder_hidden_states", "text_embeds"),
            },
        ),
        "fixed": {"time_ids": (16.0, 16.0, 0.0, 0.0, 16.0, 16.0)},
        "zero_without_negative": True,
    }  # fmt: skip
    for one in bundle.manifest.model.text.encoders:
        (ids,) = onnxruntime.InferenceSession(bundle.graph(one.graph)).get_inputs()
        assert (ids.name, ids.type, ids.shape[1:]) == ("input_ids", "tensor(int64)", [77])
    assert {path.name for path in (sdxl_plan.output_path / "text").iterdir()} == {
        "text_encoder.onnx", "text_encoder_2.onnx", "tokenizer.json", "tokenizer_2.json",
    }  # fmt: skip
    check_calibrated_rows(sdxl_plan)


@torch.no_grad()
def test_previews_are_the_tiny_decoders_pictures_of_the_predicted_samples(
    sdxl_plan: PlanFile, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderTiny

    oracle, runs, run = AutoencoderTiny.from_pretrained(sdxl.parent / "preview").eval(), list[str](), OnnxRuntimeEngine.run

    def counted(engine: OnnxRuntimeEngine, feeds: dict[str, Any]) -> Any:
        runs.append(engine.label)
        return run(engine, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", counted)
    with engines.open_bundle(sdxl_plan.output_path) as bundle:
        *steps, last = bundle.chain(2, seed=SEED, prompts=PROMPTS)
        assert len(steps) == STEPS - 1
        for step in steps:
            runs.clear()
            pictures = step.preview()
            assert len(runs) == 1
            assert step.clean is not None
            expected: Array = oracle.decode(torch.from_numpy(step.clean)).sample.numpy()
            np.testing.assert_allclose(step.decoder(step.clean), expected, atol=1e-4)
            levels = (255 * (expected.clip(-1, 1) + 1) / 2).transpose(0, 2, 3, 1)
            assert np.abs(pictures - levels).max() <= 0.52
            assert levels.std() > 1
        np.testing.assert_array_equal(last.preview(), bundle.sample(2, seed=SEED, prompts=PROMPTS))
    inspected = CliRunner().invoke(export, ["inspect", str(sdxl_plan.output_path)], catch_exceptions=False)
    assert "preview.onnx, 3 x 16 x 16" in inspected.output


def test_a_decoder_of_previews_is_made_beside_stages_that_stay(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    def stages(output: Path) -> set[str]:
        return {path.name for path in (output / "local" / "stages").iterdir()}

    output, without = tmp_path / "bundle", sdxl_plan.plan.model.model_copy(update={"preview": None})
    shutil.copytree(sdxl_plan.output_path / "local" / "stages", output / "local" / "stages")
    plan = sdxl_plan.plan.model_copy(update={"model": without, "output": str(output)})
    run_build(PlanFile(plan, sdxl_plan.folder, output))
    (only,) = stages(sdxl_plan.output_path) ^ stages(output)
    assert only.startswith("preview-")
    assert Bundle.open(output).manifest.model.preview is None
    assert not (output / "preview.onnx").exists()


def test_sdxl_starts_from_images_as_its_own_pipelines_do(sdxl_plan: PlanFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline

    bundle = Bundle.open(sdxl_plan.output_path)
    shape, (_, height, width) = bundle.manifest.model.sample_shape, bundle.manifest.model.image_shape
    pixels = np.random.default_rng(1).integers(0, 256, (len(PROMPTS), height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2] = 255
    kinds: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (StableDiffusionXLImg2ImgPipeline, {}, {}),
        (StableDiffusionXLInpaintPipeline, {"mask_image": [Image.fromarray(mask)] * len(PROMPTS)}, {"mask": mask}),
    ]
    for kind, given, drawn in kinds:
        module = sys.modules[kind.__module__]
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(start(shape, len(PROMPTS))))
        monkeypatch.setattr(module, "retrieve_latents", lambda output, **_: output.latent_dist.mode())
        parts = {name: part for name, part in pipeline(sdxl_plan.model_path).components.items() if part is not None}
        of_images = kind(**parts, add_watermarker=False, force_zeros_for_empty_prompt=True)
        of_images.set_progress_bar_config(disable=True)
        expected = of_images(
            prompt=list(PROMPTS), image=[Image.fromarray(one) for one in pixels], strength=0.7, num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, eta=0.0, output_type="latent", **given, **({"height": height, "width": width} if given else {}),
        ).images.numpy()  # fmt: skip
        with engines.open_bundle(sdxl_plan.output_path) as opened:
            found = opened.sample(
                len(PROMPTS), seed=SEED, prompts=PROMPTS, image=pixels, strength=0.7, precision="fp32", latents=True, **drawn
            )
            again = [opened.sample(1, seed=SEED, first=n, prompts=PROMPTS[n], image=pixels[n], strength=0.7, **drawn) for n in range(2)]
            together = opened.sample(2, seed=SEED, prompts=PROMPTS, image=pixels, strength=0.7, **drawn)
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
        assert np.abs(np.concatenate(again).astype(int) - together).max() <= 1


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_sdxl_prompts_are_embedded_and_sampled_as_by_the_pipeline(sdxl_plan: PlanFile, tmp_path: Path, negative: str | None) -> None:
    check_embeddings(sdxl_plan, negative)
    check_against_pipeline(sdxl_plan, tmp_path, negative)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_sdxl_takes_a_lora_of_kohyas_trainers_without_a_new_build(
    sdxl_plan: PlanFile, tmp_path: Path, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SDXL's original names, and the layers of a text encoder that stay as they are."""
    pipe, pairs = pipeline(sdxl_plan.model_path), dict[str, torch.Tensor]()
    monkeypatch.setattr(pipe, "unet", copy.deepcopy(pipe.unet))  # other tests share the pipeline
    names = {f"down_blocks.0.attentions.0.{end}": f"input_blocks_1_1_{end.replace('.', '_')}" for end in ("proj_in", ATTENTION)}
    torch.manual_seed(2)
    for name, original in {**names, "mid_block.resnets.0.conv1": "middle_block_0_in_layers_2"}.items():
        weight = pipe.unet.get_parameter(f"{name}.weight")
        up, down = torch.randn(weight.shape[0], 2, *[1] * (weight.ndim - 2)), torch.randn(2, *weight.shape[1:])
        key = f"lora_unet_{original}"
        pairs |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}
        with torch.no_grad():
            weight += scale / 2 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    text = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{end}.weight": torch.ones(2, 2) for end in ("up", "down")}
    save_file(pairs | text, tmp_path / "style.safetensors")
    with engines.open_bundle(sdxl_plan.output_path) as bundle:
        given: dict[str, Any] = {"num": 2, "seed": SEED, "prompts": PROMPTS, "precision": "fp32", "latents": True}
        with pytest.warns(UserWarning, match="1 layer of text_encoder ignored"):
            found = bundle.sample(**given, loras={tmp_path / "style.safetensors": scale})
        plain = bundle.sample(**given)
    begin = torch.from_numpy(start(found.shape[1:], 2))
    expected = pipe(
        prompt=list(PROMPTS[:2]), latents=begin, num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0, output_type="latent",
        return_dict=False,
    )[0].numpy()  # fmt: skip
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - plain).max() > 0.02


def test_a_server_gives_the_pictures_of_the_command_with_a_lora(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    """With a prompt, a negative prompt and an image too; and tells what does not fit."""
    (tmp_path / "loras").mkdir()
    _, height, width = Bundle.open(sdxl_plan.output_path).manifest.model.image_shape
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    key, path = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", tmp_path / "loras/style.safetensors"
    weight = pipeline(sdxl_plan.model_path).unet.get_parameter(f"down_blocks.0.attentions.0.{ATTENTION}.weight")
    for file, (wide, out) in {path: weight.shape[::-1], path.with_stem("other"): (3, 5)}.items():
        torch.manual_seed(2)
        save_file({f"{key}.lora_down.weight": torch.randn(2, wide), f"{key}.lora_up.weight": torch.randn(out, 2)}, file)
    server, loras = Server(sdxl_plan.output_path, path.parent), [{"name": "style", "scale": 0.8}]
    body = {"seed": SEED, "num": 2, "prompt": PROMPTS[0], "loras": loras}
    image = {"image": base64.b64encode((tmp_path / "image.png").read_bytes()).decode(), "strength": 0.7, "negative_prompt": NEGATIVE}
    options = ["--num", "2", "--prompt", PROMPTS[0], "--lora", f"{path}:0.8"]
    of_image = ["--image", str(tmp_path / "image.png"), "--strength", "0.7", "--negative-prompt", NEGATIVE]
    for output, more, others in (("plain", {}, []), ("image", image, of_image)):
        sample(sdxl_plan.output_path, tmp_path / output, *options, *others)
        assert server.pictures(body | more) == [(tmp_path / output / f"0000000{n}.png").read_bytes() for n in range(2)]
    assert server.pictures(body | {"loras": []}) != server.pictures(body)
    refused: dict[str, Any] = {
        "The server has no such LoRA. found: ../other": [{"name": "../other"}],
        "loras: List should have at most 4 items": loras * 5,
        "loras.0.scale: Input should be less than or equal to 10": [{"name": "style", "scale": 11}],
        "other.safetensors": [{"name": "other"}],
    }
    for message, asked in refused.items():
        status, found = server.refusal(body | {"loras": asked})
        assert status == 400
        assert message in found
        assert str(tmp_path) not in found


def test_pictures_of_prompts_go_round_by_sample_number(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\n\nthe photo of the dog and the word of the dog\n")
    options = ("--prompt-file", str(tmp_path / "prompts.txt"), "--negative-prompt", NEGATIVE)
    record = sample(sdxl_plan.output_path, tmp_path / "out", "--num", "4", "--first", "1", *options)
    assert record["prompts"] == ["a red cat", "the photo of the dog and the word of the dog"]
    assert record["negative_prompt"] == NEGATIVE
    assert record["rows"] == [1, 0, 1, 0]
    assert record["guidance"] == GUIDANCE
    assert record["precision_steps"] == {"w8a8": STEPS}
    pictures = [np.asarray(Image.open(tmp_path / "out" / name)) for name in record["files"]]
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 4
    assert (tmp_path / "out" / "grid.png").exists()
    assert "too long" not in record["printed"]


def test_a_prompt_that_is_too_long_is_named(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    record = sample(sdxl_plan.output_path, tmp_path / "out", "--num", "1", "--prompt", "a cat", "--prompt", "word " * 100)
    assert "cut off because they were too long: prompts 1;" in record["printed"]


def test_sampling_of_prompts_loads_no_framework(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom engines.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        "print(sorted({'torch', 'onnx', 'diffusers', 'transformers', 'scipy', 'tokenizers'} & sys.modules.keys()), file=sys.stderr)"
    )
    options = ["--num", "1", "--seed", "1", "--output", str(tmp_path / "out"), "--prompt", "a cat"]
    command = [sys.executable, "-c", program, "sample", str(sdxl_plan.output_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "['tokenizers']\n")
    assert json.loads((tmp_path / "out" / "samples.json").read_text())["prompts"] == ["a cat"]


def test_a_negative_prompt_without_guidance_is_refused(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    options = ("--prompt", "cat", "--negative-prompt", "dog", "--guidance", "1", "--accept-guidance", "--num", "1", "--seed", "1")
    done = CliRunner().invoke(main, ["sample", str(sdxl_plan.output_path), "--output", str(tmp_path / "out"), *options])
    assert (done.exit_code, "A negative prompt needs guidance" in done.output) == (2, True)
    assert not (tmp_path / "out").exists()


def test_samples_depend_on_prompt_and_negative_prompt(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    states = []
    for number, options in enumerate((("--prompt", "cat"), ("--prompt", "dog"), ("--prompt", "cat", "--negative-prompt", "dog"))):
        sample(sdxl_plan.output_path, tmp_path / str(number), "--num", "1", "--format", "npz", *options)
        with np.load(tmp_path / str(number) / "samples.npz") as archive:
            states.append(archive["samples"])
    differences = [np.abs(states[i] - states[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(differences) > 1e-3


def test_evaluation_of_prompts_gives_a_clip_score(sdxl_plan: PlanFile, tmp_path: Path) -> None:
    """The score is the mean over the pictures that `sample` writes."""
    clip, prompts, num = tmp_path / "clip", ("the red dog", "a photo of the cat"), 50
    write_clip(tiny_text.write_clip(tmp_path / "model"), clip)
    options = [str(sdxl_plan.output_path), "--num", str(num), "--seed", str(SEED), *(f"--prompt={prompt}" for prompt in prompts)]
    done = CliRunner().invoke(main, ["evaluate", *options, "--clip", str(clip), "--json", str(tmp_path / "figures.json")])
    assert (done.exit_code, done.stderr) == (0, "")
    record = json.loads((tmp_path / "figures.json").read_text())
    score = record["figures"]["clip_score"]
    assert (record["prompts"], score["extractor"]) == (list(prompts), "clip-model")
    assert score["difference"]["mean"] == pytest.approx(score["quantized"]["mean"] - score["full_precision"]["mean"])
    sample(sdxl_plan.output_path, tmp_path / "out", *options[1:3], "--precision", "fp32", "--format", "npz", *options[5:])
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        images = (archive["images"] / 127.5 - 1).astype(np.float32)
    expected = ClipScorer(clip, prompts)(images, None, np.arange(num) % 2)
    assert 0 < expected.mean() == pytest.approx(score["full_precision"]["mean"], rel=1e-3)


@pytest.mark.slow
def test_stable_diffusion_1_in_half_precision_with_a_lora(tmp_path: Path) -> None:
    folder = tiny_text.write_sd1(tmp_path / "model", variant="fp16")
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    factors = {f"{key}.lora_down.weight": torch.randn(2, 16), f"{key}.lora_up.weight": torch.randn(16, 2)}
    save_file(factors, tmp_path / "lora.safetensors")
    plan = built(plan_of(folder, lora={"path": "lora.safetensors"}, negative_prompt=NEGATIVE))
    query = pipeline(folder).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    with torch.no_grad():
        query.weight += factors[f"{key}.lora_up.weight"] @ factors[f"{key}.lora_down.weight"]
    check_calibrated_rows(plan)
    check_embeddings(plan, NEGATIVE)
    check_against_pipeline(plan, tmp_path, NEGATIVE)
    record = sample(plan.output_path, tmp_path / "out", "--num", "2", "--prompt", "a cat")
    assert record["precision_steps"] == {"w8a8": STEPS}


@pytest.mark.slow
def test_stable_diffusion_2_predicts_v(tmp_path: Path, sd2: Path) -> None:
    plan = built(plan_of(Path(shutil.copytree(sd2, tmp_path / "model"))))
    assert Bundle.open(plan.output_path).manifest.parameterization == "v_prediction"
    check_calibrated_rows(plan)
    check_embeddings(plan, None)
    check_against_pipeline(plan, tmp_path, None)
    record = sample(plan.output_path, tmp_path / "out", "--num", "2", "--prompt", "a cat")
    assert record["precision_steps"] == {"w8a8": STEPS}
