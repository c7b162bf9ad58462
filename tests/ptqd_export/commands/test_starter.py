"""Starter plans, from the configuration files of a diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.errors import UsageError
from ptqd_export.commands import proposed_precisions
from ptqd_export.commands.starter import starter_plan, write_starter_plan
from ptqd_export.plan import load_plan

SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False}

UNET = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 3, "out_channels": 3}
DIT = {"_class_name": "DiTTransformer2DModel", "sample_size": 8, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 10}


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _pipeline(
    folder: Path, *, denoiser: str = "unet", config: dict[str, object] | None = None, scheduler: dict[str, Any] | None = None
) -> Path:
    named = (scheduler or SCHEDULER).get("_class_name")
    parts = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", named], denoiser: ["diffusers", "SomeModel"]}
    _write(folder / "model_index.json", parts)
    _write(folder / denoiser / "config.json", UNET | (config or {}))
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER if scheduler is None else scheduler)
    return folder


def _error(model: Path, target: str = "onnxruntime") -> str:
    with pytest.raises(UsageError) as caught:
        starter_plan(model, target, model.parent)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_quick_plan_differs_only_in_what_its_note_says(tmp_path: Path) -> None:
    model, written = _pipeline(tmp_path / "model"), tmp_path / "plan.json"
    notes = write_starter_plan(model, "onnxruntime", written, force=False, first_look=True)
    assert notes[-1].startswith(
        "quick: w8a8 instead of w8a8 and w4a8, 10 sampling steps instead of 20, 64 calibration samples instead of 512, "
        "no cuts where steps reuse features."
    )
    made, whole = load_plan(written).plan.model_dump(), starter_plan(model, "onnxruntime", tmp_path).model_dump()
    whole["precisions"] = ("w8a8",)
    whole["sampler"]["steps"] = 10
    assert whole.pop("reuse") == {"cuts": "auto"} != made.pop("reuse")
    whole["calibration"] |= {"samples": 64, "activation_samples": 64, "batch_size": 32}
    assert made == whole


def test_unconditional_pipeline_gets_no_guidance(tmp_path: Path) -> None:
    plan = starter_plan(_pipeline(tmp_path / "flowers"), "onnxruntime", tmp_path)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.eta, plan.sampler.guidance) == ("ddpm", 20, 1.0, 1.0)
    assert plan.precisions == ("w8a8", "w4a8")
    assert plan.target.name == "onnxruntime"
    assert (plan.model.path, plan.output) == ("flowers", "build/flowers")


def test_model_with_classes_gets_no_guidance_until_its_null_class_is_known(tmp_path: Path) -> None:
    plan = starter_plan(_pipeline(tmp_path / "digits", config={"num_class_embeds": 10}), "onnxruntime", tmp_path)
    assert plan.sampler.guidance == 1.0
    assert "does not say which of its 10 labels" in plan.comments[0]


def test_model_whose_class_count_is_null_gets_no_guidance(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "digits", config={"num_class_embeds": None})
    assert starter_plan(model, "onnxruntime", tmp_path).sampler.guidance == 1.0


def test_transformer_is_a_denoiser_too(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "dit", denoiser="transformer", config=DIT)
    assert starter_plan(model, "onnxruntime", tmp_path).sampler.guidance == 1.5


def test_text_model_gets_prompts_to_calibrate_with(tmp_path: Path) -> None:
    config = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "cross_attention_dim": 16}
    model = _pipeline(tmp_path / "paintings", config=config)
    assert starter_plan(model, "onnxruntime", tmp_path).model.prompts is None
    _write(model / "text_encoder" / "config.json", {"architectures": ["CLIPTextModel"]})
    assert starter_plan(model, "onnxruntime", tmp_path).model.prompts is None  # the pipeline's index does not list it
    index = json.loads((model / "model_index.json").read_text())
    _write(model / "model_index.json", index | {"text_encoder": ["transformers", "CLIPTextModel"]})
    plan = starter_plan(model, "onnxruntime", tmp_path)
    assert plan.model.prompts
    assert all(isinstance(prompt, str) for prompt in plan.model.prompts)
    assert plan.sampler.guidance == 7.5


def test_single_model_folder_with_its_scheduler(tmp_path: Path) -> None:
    _write(tmp_path / "net" / "config.json", UNET | {"num_class_embeds": 11})
    _write(tmp_path / "net" / "scheduler_config.json", SCHEDULER)
    assert starter_plan(tmp_path / "net", "onnxruntime", tmp_path).sampler.name == "ddpm"


def test_chain_is_not_longer_than_the_training_schedule(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "short", scheduler=SCHEDULER | {"num_train_timesteps": 8})
    assert starter_plan(model, "onnxruntime", tmp_path).sampler.steps == 8


def test_written_plan_is_complete_and_points_back_at_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pipeline(tmp_path / "models" / "digits")
    monkeypatch.chdir(tmp_path)
    write_starter_plan(Path("models/digits"), "onnxruntime", Path("plans/first/plan.json"), force=False)
    text = Path("plans/first/plan.json").read_text()
    assert json.loads(text)["model"]["path"] == "../../models/digits"
    plan_file = load_plan(Path("plans/first/plan.json"))
    assert plan_file.model_path.resolve() == tmp_path / "models" / "digits"
    assert plan_file.plan.resolved_json() == text


def test_bundle_is_named_after_the_folder_even_where_it_is_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_pipeline(tmp_path / "digits"))
    plan = starter_plan(Path(), "onnxruntime", Path())
    assert (plan.model.path, plan.output) == (".", "build/digits")


def test_file_in_the_way_is_kept_unless_forced(tmp_path: Path) -> None:
    model, path = _pipeline(tmp_path / "digits"), tmp_path / "plan.json"
    path.write_text("precious")
    with pytest.raises(UsageError) as caught:
        write_starter_plan(model, "onnxruntime", path, force=False)
    assert str(caught.value) == (
        f"The output file already exists.\n  found:    {path}\n  expected: a new file\n"
        "  mend:     choose another with -o, or overwrite it with --force"
    )
    assert path.read_text() == "precious"
    write_starter_plan(model, "onnxruntime", path, force=True)
    assert load_plan(path).plan.model.path == "digits"


def test_missing_folder(tmp_path: Path) -> None:
    assert _error(tmp_path / "none") == (
        f"The model folder is missing.\n  found:    no folder {tmp_path / 'none'}\n"
        "  expected: a folder written by `save_pretrained` of a diffusers pipeline or model, "
        "a .ckpt or .safetensors file beside its YAML, or the id of a model on the Hugging Face hub\n"
        "  mend:     correct model.path, which is relative to the plan, or --model"
    )


def test_folder_of_something_else(tmp_path: Path) -> None:
    assert f"found:    {tmp_path} with no part that diffusers wrote" in _error(tmp_path)


def test_pipeline_without_a_denoiser(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "codec", denoiser="vae")
    assert _error(model).startswith(f"The model folder has no denoiser.\n  found:    {model} with vae (UNet2DModel)\n")


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_incomplete_folder_names_the_missing_file(tmp_path: Path, file: str) -> None:
    model = _pipeline(tmp_path / "digits")
    (model / file).unlink()
    assert file in _error(model)


def test_configuration_without_a_key_names_it(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "digits")
    _write(model / "unet" / "config.json", {"_class_name": "UNet2DModel", "sample_size": 8})
    assert f"found:    no in_channels in {model / 'unet' / 'config.json'}" in _error(model)


@pytest.mark.parametrize(
    ("scheduler", "name", "eta"),
    [
        ({"_class_name": "DDIMScheduler"}, "ddim", 1.0),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "plms", 0.0),
        ({"_class_name": "EulerDiscreteScheduler"}, "euler", 0.0),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "euler-ancestral", 1.0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-euler", 0.0),
    ],
)
def test_the_sampler_is_the_models_own(tmp_path: Path, scheduler: dict[str, object], name: str, eta: float) -> None:
    sampler = starter_plan(_pipeline(tmp_path / "model", scheduler=scheduler), "onnxruntime", tmp_path).sampler
    assert (sampler.name, sampler.eta) == (name, eta)


@pytest.mark.parametrize(
    ("scheduler", "eta"),
    [
        ({"_class_name": "LCMScheduler"}, 1.0),
        ({"_class_name": "TCDScheduler"}, 0.3),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, 0.0),
    ],
)
def test_model_of_few_steps_gets_few_steps_without_guidance(tmp_path: Path, scheduler: dict[str, object], eta: float) -> None:
    plan = starter_plan(_pipeline(tmp_path / "model", scheduler=scheduler), "onnxruntime", tmp_path)
    assert (plan.sampler.steps, plan.sampler.guidance, plan.sampler.eta) == (4, 1.0, eta)
    assert any("distilled for few steps" in comment for comment in plan.comments)
    assert plan.reuse.cuts == (), "features of so few steps differ too much"


def test_the_name_of_a_model_without_text_tells_no_steps(tmp_path: Path) -> None:
    plan = starter_plan(_pipeline(tmp_path / "cifar-turbo-4-steps"), "onnxruntime", tmp_path)
    assert plan.sampler.steps > 4
    assert not any("distilled" in comment for comment in plan.comments)


def test_scheduler_without_betas_is_refused_at_once(tmp_path: Path) -> None:
    model = _pipeline(tmp_path / "edm", scheduler={"_class_name": "EDMEulerScheduler"})
    message = _error(model)
    assert "found:    EDMEulerScheduler" in message
    assert "expected:" in message


def test_unknown_target_lists_the_known(tmp_path: Path) -> None:
    message = _error(_pipeline(tmp_path / "digits"), target="openvino")
    assert message == (
        "The target is unknown.\n  found:    openvino\n  expected: onnxruntime or tensorrt or tensorrt-rtx\n  mend:     correct --target"
    )


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_plan_for_tensorrt_shows_what_its_engines_are_built_with(tmp_path: Path, target: str) -> None:
    write_starter_plan(_pipeline(tmp_path / "flowers"), target, tmp_path / "plan.json", force=False)
    section = json.loads((tmp_path / "plan.json").read_text())["target"]
    assert (section["name"], section["high_precision"], section["workspace_gib"]) == (target, "fp16", None)
    assert section["batch"] == {"min": 1, "opt": 8, "max": 64}
    assert load_plan(tmp_path / "plan.json").plan.target.name == target


@pytest.mark.parametrize(
    ("capability", "precisions"),
    [("12.0", ("fp8", "nvfp4")), ("10.0", ("fp8", "nvfp4")), ("9.0", ("fp8",)), ("8.9", ("fp8",)), ("8.6", ("w8a8",)), ("7.5", ("w8a8",))],
)
def test_precisions_are_those_that_the_gpu_multiplies(tmp_path: Path, capability: str, precisions: tuple[str, ...]) -> None:
    plan = starter_plan(_pipeline(tmp_path / "flowers"), "tensorrt-rtx", tmp_path, capability)
    assert plan.precisions == precisions
    assert plan.comments[-1].startswith(f"precisions for a GPU of compute capability {capability}: it multiplies")


def test_precisions_of_every_target_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _pipeline(tmp_path / "flowers")
    monkeypatch.setattr(proposed_precisions, "_of_this_machine", lambda: None)
    assert starter_plan(model, "tensorrt", tmp_path).precisions == ("w8a8", "w4a8")
    monkeypatch.setattr(proposed_precisions, "_of_this_machine", lambda: "8.9")
    assert starter_plan(model, "tensorrt", tmp_path).precisions == ("fp8",)
    assert starter_plan(model, "onnxruntime", tmp_path).precisions == ("w8a8", "w4a8")
    assert starter_plan(model, "tensorrt", tmp_path).reuse.cuts == (), "no build can time its engines"


@pytest.mark.parametrize(
    ("target", "capability", "message"),
    [
        ("onnxruntime", "8.9", "8.9 with the target onnxruntime"),
        ("tensorrt", "7.0", "compute capability 7.0"),
        ("tensorrt", "ada", "a number such as 8.9"),
    ],
)
def test_compute_capability_that_does_not_fit_is_refused(tmp_path: Path, target: str, capability: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        starter_plan(_pipeline(tmp_path / "flowers"), target, tmp_path, capability)
    assert message in str(caught.value)


def test_quick_plan_for_a_gpu_keeps_what_it_multiplies(tmp_path: Path) -> None:
    model, written = _pipeline(tmp_path / "model"), tmp_path / "plan.json"
    notes = write_starter_plan(model, "tensorrt", written, force=False, first_look=True, compute_capability="8.9")
    assert load_plan(written).plan.precisions == ("fp8",)
    assert notes[-1].startswith("quick: 10 sampling steps instead of 20, ")
