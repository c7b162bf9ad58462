from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError
from ptqd_export.models.lora import load_lora

SCALE = 0.7
RANK = 2
UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def network_with(name: str, layer: nn.Module) -> nn.Module:
    """A network with one layer of this name."""
    for part in reversed(name.split(".")):
        outer = nn.Module()
        outer.add_module(part, layer)
        layer = outer
    return layer


def factors(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Random down and up for a layer."""
    torch.manual_seed(3)
    out, *rest = layer.weight.shape
    return torch.randn(RANK, *rest), torch.randn(out, RANK, *[1] * (len(rest) - 1))


def fused_by_hand(weight: NDArray[Any], down: Tensor, up: Tensor, alpha: float) -> NDArray[Any]:
    """`W + scale alpha / rank B A`, entry by entry in float64."""
    change: NDArray[Any] = np.einsum("or,ri...->oi...", up.double().flatten(1).numpy(), down.double().numpy())
    return np.asarray(weight + SCALE * alpha / RANK * change)


def fuse(tmp_path: Path, tensors: Mapping[str, Tensor], part: str, network: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    stored = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "lora.safetensors", stored)
    lora = load_lora(tmp_path / "lora.safetensors", SCALE)
    lora.fuse(part, network)


SPELLINGS = {
    "peft": ("unet", UNET, f"unet.{UNET}.lora_A.weight", f"unet.{UNET}.lora_B.weight"),
    "diffusers": ("unet", UNET, f"unet.{UNET}.lora.down.weight", f"unet.{UNET}.lora.up.weight"),
    "old diffusers": (
        "unet", UNET,
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight",
    ),
    "kohya": (
        "unet", UNET,
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
    ),
    "kohya, SDXL's own numbers, on the way down": (
        "unet", UNET,
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0.lora_up.weight",
    ),
    "kohya, SDXL's own numbers, in the middle": (
        "unet", "mid_block.attentions.0.proj_in",
        "lora_unet_middle_block_1_proj_in.lora_down.weight", "lora_unet_middle_block_1_proj_in.lora_up.weight",
    ),
    "kohya, SDXL's own numbers, on the way up": (
        "unet", "up_blocks.1.attentions.2.proj_out",
        "lora_unet_output_blocks_5_1_proj_out.lora_down.weight", "lora_unet_output_blocks_5_1_proj_out.lora_up.weight",
    ),
    "text, peft": ("text_encoder", TEXT, f"text_encoder.{TEXT}.lora_A.weight", f"text_encoder.{TEXT}.lora_B.weight"),
    "text, without the prefix of transformers 4": (
        "text_encoder_2", TEXT.removeprefix("text_model."), f"text_encoder_2.{TEXT}.lora_A.weight", f"text_encoder_2.{TEXT}.lora_B.weight",
    ),
    "text, old diffusers": (
        "text_encoder", TEXT,
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight",
    ),
    "text, kohya": (
        "text_encoder_2", TEXT,
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_layer_is_changed_whatever_the_trainer_called_it(tmp_path: Path, spelling: str) -> None:
    part, name, down_key, up_key = SPELLINGS[spelling]
    layer = nn.Linear(6, 4)
    before, (down, up) = layer.weight.detach().double().numpy(), factors(layer)
    fuse(tmp_path, {down_key: down, up_key: up}, part, network_with(name, layer))
    np.testing.assert_allclose(layer.weight.detach().numpy(), fused_by_hand(before, down, up, RANK), atol=1e-6)
    assert not np.allclose(layer.weight.detach().numpy(), before, atol=0.1)


def test_convolutions_are_changed(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3)
    before, (down, up) = layer.weight.detach().double().numpy(), factors(layer)
    tensors = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    fuse(tmp_path, tensors, "unet", network_with("conv_in", layer))
    np.testing.assert_allclose(layer.weight.detach().numpy(), fused_by_hand(before, down, up, RANK), atol=1e-6)


def test_alpha_is_the_layers_own_or_the_files_or_the_rank(tmp_path: Path) -> None:
    for extra, metadata, alpha in (
        ({"lora_unet_proj.alpha": torch.tensor(8.0)}, None, 8.0),
        ({}, {"unet.lora_alpha": 5, "text_encoder.lora_alpha": 9}, 5.0),
        ({}, None, float(RANK)),
    ):
        layer = nn.Linear(6, 4)
        before, (down, up) = layer.weight.detach().double().numpy(), factors(layer)
        tensors = {"lora_unet_proj.lora_down.weight": down.half(), "lora_unet_proj.lora_up.weight": up.half(), **extra}
        fuse(tmp_path, tensors, "unet", network_with("proj", layer), metadata)
        np.testing.assert_allclose(layer.weight.detach().numpy(), fused_by_hand(before, down.half(), up.half(), alpha), atol=1e-5)


def test_layers_of_another_part_stay(tmp_path: Path) -> None:
    layer = nn.Linear(6, 4)
    before, (down, up) = layer.weight.detach().clone(), factors(layer)
    fuse(tmp_path, {"unet.proj.lora_A.weight": down, "unet.proj.lora_B.weight": up}, "text_encoder", network_with("proj", layer))
    assert torch.equal(layer.weight, before)


PAIR = {"unet.proj.lora_A.weight": torch.zeros(2, 6), "unet.proj.lora_B.weight": torch.zeros(4, 2)}


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"unet.other.lora_A.weight": torch.zeros(2, 6), "unet.other.lora_B.weight": torch.zeros(4, 2)}, None, "does not fit the model"),
        (
            {"unet.proj.lora_A.weight": torch.zeros(2, 5), "unet.proj.lora_B.weight": torch.zeros(4, 2)},
            None,
            r"change of a weight \(4, 6\)",
        ),
        ({**PAIR, "unet.proj.lora_B.weight": torch.zeros(4, 3)}, None, "change of a weight"),
        ({**PAIR, "unet.proj.lora_A.weight": torch.zeros(2, 4), "unet.proj.lora_B.weight": torch.zeros(6, 2)}, None, "change of a weight"),
        ({"unet.proj.lora_A.weight": torch.zeros(2, 6)}, None, "has down"),
        ({**PAIR, "lora_unet_proj.hada_w1_a": torch.zeros(1)}, None, "lora_unet_proj.hada_w1_a"),
        ({**PAIR, "unet.proj.lora_magnitude_vector": torch.zeros(4)}, None, "lora_magnitude_vector"),
        ({**PAIR, "transformer.proj.lora_A.weight": torch.zeros(2, 6)}, None, "This kind of LoRA is not supported"),
        (PAIR, {"unet.use_rslora": True}, "use_rslora"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fuse(tmp_path, tensors, "unet", network_with("proj", nn.Linear(6, 4)), metadata)


def test_a_part_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    save_file({key.replace("unet", "text_encoder_2"): value for key, value in PAIR.items()}, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors", SCALE)
    lora.check_parts(("unet", "text_encoder_2"))
    with pytest.raises(UsageError, match="layers of text_encoder_2"):
        lora.check_parts(("unet", "text_encoder"))


def test_a_missing_and_a_damaged_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The LoRA is missing"):
        load_lora(tmp_path / "lora.safetensors", SCALE)
    (tmp_path / "lora.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PtqdError, match="cannot be read"):
        load_lora(tmp_path / "lora.safetensors", SCALE)
