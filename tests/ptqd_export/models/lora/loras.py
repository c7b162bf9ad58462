"""LoRA files and the networks that they change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from ptqd_export.models.lora import Lora, load_lora

SCALE = 0.7
RANK = 2
PEFT_CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True}


def network_with(name: str, layer: nn.Module) -> nn.Module:
    """A network with one layer of this name."""
    for part in reversed(name.split(".")):
        outer = nn.Module()
        outer.add_module(part, layer)
        layer = outer
    return layer


def factors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Random down and up for a layer."""
    torch.manual_seed(3)
    assert isinstance(layer.weight, Tensor)
    out, *rest = layer.weight.shape
    return torch.randn(RANK, *rest), torch.randn(out, RANK, *[1] * (len(rest) - 1))


def fused_by_hand(weight: NDArray[Any], down: Tensor, up: Tensor, alpha: float) -> NDArray[Any]:
    """`W + scale alpha / rank B A`, entry by entry in float64."""
    change: NDArray[Any] = np.einsum("or,ri...->oi...", up.double().flatten(1).numpy(), down.double().numpy())
    return np.asarray(weight + SCALE * alpha / RANK * change)


def array(tensor: Any) -> NDArray[Any]:
    """A copy in float64."""
    return np.array(tensor.detach().double().numpy())


def written(folder: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, scale: float = SCALE) -> Lora:
    """The LoRA of a file with these tensors."""
    stored = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "lora.safetensors", stored)
    return load_lora(folder / "lora.safetensors", scale)


def fuse(folder: Path, tensors: Mapping[str, Tensor], part: str, network: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    written(folder, tensors, metadata).fuse(part, network)


def write_peft(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write a folder as PEFT does."""
    save_file({f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PEFT_CONFIG, **config}))
    return folder


def small_unet(**config: Any) -> Any:
    """SDXL's U-Net in miniature."""
    from diffusers import UNet2DConditionModel

    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    torch.manual_seed(1)
    return UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (4, 4, 8), "norm_num_groups": 2, "cross_attention_dim": 6, "attention_head_dim": 2,
        "down_block_types": kinds[0], "up_block_types": kinds[1], "addition_embed_type": "text_time", "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 16, **config,
    })  # fmt: skip
