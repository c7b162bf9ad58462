"""A checkpoint without a YAML is told by its tensors, and the message says what to do with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engines.errors import PtqdError, UsageError
from ptqd_export.models.compvis.latent_diffusion import find_config


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            r"one file of Stable Diffusion.*Pipeline\.from_single_file",
        ),
        ("cond_stage_model.model.ln_final.bias", r"one file of Stable Diffusion"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", r"one file of SDXL.*XLPipeline\.from_single_file"),
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", r"a LoRA.*model\.lora\.path"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", r"a LoRA"),
        ("down_blocks.0.resnets.0.conv1.bias", r"weights of diffusers.*the folder of the pipeline"),
        ("model.diffusion_model.out.2.bias", r"has no configuration.*0 \*\.yaml files beside.*copy the YAML .*model\.yaml"),
    ],
)
def test_what_a_checkpoint_is(tmp_path: Path, key: str, message: str, suffix: str) -> None:
    path, tensors = tmp_path / f"model.{suffix}", {"model.diffusion_model.out.2.weight": torch.ones(1), key: torch.ones(2)}
    if suffix == "ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        find_config(path)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(PtqdError, match="The checkpoint cannot be read"):
        find_config(tmp_path / "model.safetensors")
