"""LoRAs that distil a model to a few steps, by the names that their authors published: `init --lora` writes how they are sampled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from engines.errors import PtqdError, UsageError
from engines.networks.lora.lora_use import LoraUse
from engines.samplers import compile_sampler
from ptqd_export.cli import main
from ptqd_export.commands.starter import starter_plan
from ptqd_export.plan import Plan, load_plan
from tests.ptqd_export.commands.test_few_step_models import BETAS, SDXL, UNET
from tests.ptqd_export.models.tiny_transformers import FLOW, FLUX, QWEN, SD3

EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1}
PNDM = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "steps_offset": 1}
FLOWING = {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 3.0}
MODELS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "sd15": ({**UNET}, PNDM),
    "sdxl": ({**SDXL}, EULER),
    "flux": ({"_class_name": "FluxTransformer2DModel", **FLUX, "guidance_embeds": True}, FLOWING),
    "sd3": ({"_class_name": "SD3Transformer2DModel", **SD3}, FLOWING),
    "qwen": ({"_class_name": "QwenImageTransformer2DModel", **QWEN}, FLOWING),
}

NAMELESS = "pytorch_lora_weights.safetensors"
LORAS: Mapping[str, tuple[str, tuple[str, int, float]]] = {
    f"models--latent-consistency--lcm-lora-sdv1-5/snapshots/8a3b/{NAMELESS}": ("sd15", ("lcm", 4, 1.0)),
    f"lcm-lora-sdxl/{NAMELESS}": ("sdxl", ("lcm", 4, 1.0)),
    f"TCD-SDXL-LoRA/{NAMELESS}": ("sdxl", ("tcd", 4, 1.0)),
    "sdxl_lightning_8step_lora.safetensors": ("sdxl", ("euler", 8, 1.0)),
    "Hyper-SD15-2steps-lora.safetensors": ("sd15", ("ddim", 2, 1.0)),
    "Hyper-SDXL-12steps-CFG-lora.safetensors": ("sdxl", ("ddim", 12, 5.0)),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("sdxl", ("lcm", 4, 1.0)),
    "Hyper-FLUX.1-dev-16steps-lora.safetensors": ("flux", ("flow-euler", 16, 3.5)),
    "FLUX.1-Turbo-Alpha/diffusion_pytorch_model.safetensors": ("flux", ("flow-euler", 8, 3.5)),
    "Hyper-SD3-4steps-CFG-lora.safetensors": ("sd3", ("flow-euler", 4, 3.0)),
    "Qwen-Image-Lightning-8steps-V1.0.safetensors": ("qwen", ("flow-euler", 8, 1.0)),
}
"""Published files: the model, and its sampler, steps and guidance with the LoRA."""

TRAILING = ("sdxl_lightning_8step_lora.safetensors", "Hyper-SD15-2steps-lora.safetensors", "Hyper-SDXL-12steps-CFG-lora.safetensors")


def _model(kind: str, folder: Path) -> Path:
    network, scheduler = MODELS[kind]
    denoiser = "unet" if "block_out_channels" in network else "transformer"
    for name, content in ((f"{denoiser}/config", network), ("scheduler/scheduler_config", scheduler)):
        file = folder / kind / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return folder / kind


def _lora(name: str, folder: Path, metadata: Mapping[str, str] | None = None) -> LoraUse:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({"unet.conv_in.lora_A.weight": np.zeros((1, 4, 3, 3), np.float32)}, file, dict(metadata) if metadata else None)
    return LoraUse(file, 0.5)


def _plan(kind: str, lora: LoraUse, folder: Path) -> Plan:
    return starter_plan(_model(kind, folder), "onnxruntime", folder, lora=lora)


@pytest.mark.parametrize("name", LORAS)
def test_a_published_lora_decides_how_the_model_is_sampled(name: str, tmp_path: Path) -> None:
    kind, expected = LORAS[name]
    plan = _plan(kind, _lora(name, tmp_path), tmp_path)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.guidance) == expected
    assert (plan.sampler.timestep_spacing == "trailing") is (name in TRAILING)
    assert plan.model.lora is not None
    assert (plan.model.lora.path, plan.model.lora.scale) == (name, 0.5)
    assert any("says that the LoRA was made for few steps" in comment for comment in plan.comments)


def test_the_levels_of_dmd_are_those_of_its_authors(tmp_path: Path) -> None:
    plan = _plan("sdxl", _lora("dmd2_sdxl_4step_lora_fp16.safetensors", tmp_path), tmp_path)
    assert plan.sampler.timesteps == (999, 749, 499, 249)


def test_the_name_in_the_metadata_tells_too(tmp_path: Path) -> None:
    plan = _plan("sd15", _lora("converted.safetensors", tmp_path, {"ss_output_name": "hyper-sd15-1step"}), tmp_path)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.eta, plan.sampler.guidance) == ("tcd", 1, 1.0, 1.0)


def test_a_lora_of_style_changes_nothing_but_the_weights(tmp_path: Path) -> None:
    """Whatever the folder is called, and words within words do not count."""
    plan, own = (
        _plan("sd15", _lora("lcm/turbocharged-fox.safetensors", tmp_path), tmp_path),
        starter_plan(tmp_path / "sd15", "onnxruntime", tmp_path),
    )
    assert (plan.sampler, plan.comments) == (own.sampler, own.comments)
    assert plan.model.lora is not None


def test_the_chain_of_lcm_is_that_of_the_authors_page(tmp_path: Path) -> None:
    """diffusers: `LCMScheduler.from_config(pipe.scheduler.config)`, four steps."""
    import diffusers

    from ptqd_export.models.diffusers_folder import DiffusersFolder

    plan = _plan("sdxl", _lora(f"lcm-lora-sdxl/{NAMELESS}", tmp_path), tmp_path)
    schedule = DiffusersFolder(tmp_path / "sdxl").noise_schedule.model_copy(update=plan.sampler.overrides)
    table = compile_sampler(plan.sampler.name, plan.sampler.steps, plan.sampler.eta, schedule)
    scheduler = diffusers.LCMScheduler.from_config({key: value for key, value in EULER.items() if key != "_class_name"})
    scheduler.set_timesteps(4)
    assert [table.step(step).timestep for step in range(table.steps)] == scheduler.timesteps.tolist()


def test_the_command_takes_a_scale_and_refuses_what_is_no_lora(tmp_path: Path) -> None:
    model, lora, output = _model("sd15", tmp_path), _lora("style.safetensors", tmp_path).path, tmp_path / "plan.json"
    done = CliRunner().invoke(main, ["init", "--model", str(model), "--lora", f"{lora}:0.7", "-o", str(output)])
    assert done.exit_code == 0, done.output
    written = load_plan(output).plan.model.lora
    assert written is not None
    assert (written.path, written.scale) == ("style.safetensors", 0.7)
    lora.write_bytes(b"no safetensors")
    with pytest.raises(PtqdError, match=r"The LoRA cannot be read[^|]*style.safetensors"):
        starter_plan(model, "onnxruntime", tmp_path, lora=LoraUse(lora))
    with pytest.raises(UsageError, match="The LoRA is missing"):
        starter_plan(model, "onnxruntime", tmp_path, lora=LoraUse(tmp_path / "none.safetensors"))
    with pytest.raises(UsageError, match="This model takes no LoRA"):
        starter_plan("denoiser:trained", "onnxruntime", tmp_path, lora=LoraUse(lora))
