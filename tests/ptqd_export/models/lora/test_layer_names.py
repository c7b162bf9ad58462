"""Names of SDXL's original code against diffusers' own conversions, of keys of a LoRA and of a whole checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ptqd_export.models.lora.layer_names import named_layers
from tests.ptqd_export.models.lora.loras import array, factors, fused_by_hand, small_unet, written

FIRST_BLOCK_WITHOUT_ATTENTION = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "addition_embed_type": None,
}
"""The order of Stable Diffusion 1."""


def original_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by their original names."""
    starts = ("input_blocks", "middle_block", "output_blocks", "time_embed_", "label_emb", "out_")
    kinds = (nn.Linear, nn.Conv2d)
    return {name: layer for name, layer in named_layers(network).items() if name.startswith(starts) and isinstance(layer, kinds)}


def pairs(names: dict[str, nn.Module]) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in names.items():
        tensors[f"lora_unet_{name}.lora_down.weight"], tensors[f"lora_unet_{name}.lora_up.weight"] = factors(layer)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
    return tensors


@pytest.mark.parametrize("layers_per_block", [1, 2])
def test_every_layer_of_sdxl_is_where_diffusers_puts_it(layers_per_block: int) -> None:
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    network = small_unet(layers_per_block=layers_per_block)
    originals = original_layers(network)
    everything = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert len(originals) == len(everything) == len(set(originals.values()))
    marked = {f"lora_unet_{name}.lora_{end}.weight": torch.tensor(i) for i, name in enumerate(originals) for end in ("down", "up")}
    state, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(marked, unet_config=network.config)
    found = {int(mark): key.removeprefix("unet.") for key, mark in convert_unet_state_dict_to_peft(state).items() if "lora_A" in key}
    modules = dict(network.named_modules())
    assert [modules[found[i].removesuffix(".lora_A.weight")] for i in range(len(originals))] == list(originals.values())


@pytest.mark.parametrize("config", [{}, FIRST_BLOCK_WITHOUT_ATTENTION])
def test_every_layer_is_where_the_conversion_of_checkpoints_puts_it(config: dict[str, Any]) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network = small_unet(**config)
    plain = original_layers(network)
    dotted = {dots(name): layer for name, layer in plain.items()}
    checkpoint = {f"model.diffusion_model.{name}.{end}": name for name in dotted for end in ("weight", "bias")}
    converted = convert_ldm_unet_checkpoint(checkpoint, dict(network.config))
    modules = dict(network.named_modules())
    found = {name: key.removesuffix(".weight") for key, name in converted.items() if key.endswith(".weight")}
    assert {name: modules[key] for name, key in found.items()} == dotted


def dots(name: str) -> str:
    """The original name with its dots."""
    words = (
        "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection", "time_embed",
        "label_emb", "transformer_blocks", "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out",
    )  # fmt: skip
    for word in words:
        name = name.replace(word, word.replace("_", "-"))
    return name.replace("_", ".").replace("-", "_")


def test_a_kohya_file_with_original_names_changes_every_layer(tmp_path: Path) -> None:
    network, before = small_unet(), small_unet().state_dict()
    originals = original_layers(network)
    written(tmp_path, pairs(originals)).fuse("unet", network)
    names = {module: name for name, module in network.named_modules()}
    for layer in originals.values():
        key = f"{names[layer]}.weight"
        np.testing.assert_allclose(array(layer.weight), fused_by_hand(array(before[key]), *factors(layer), 3.0), atol=1e-5)


@pytest.mark.parametrize(
    ("original", "name"),
    [
        ("output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("label_emb_0_2", "add_embedding.linear_2"),
        ("add_embedding_linear_2", "add_embedding.linear_2"),
        ("time_embed_2", "time_embedding.linear_2"),
        ("out_2", "conv_out"),
    ],
)
def test_literal_names_of_sdxl(original: str, name: str) -> None:
    network = small_unet()
    assert named_layers(network)[original] is network.get_submodule(name)


def test_an_upsampler_after_a_block_without_attention_is_none() -> None:
    network = small_unet(**FIRST_BLOCK_WITHOUT_ATTENTION)
    assert named_layers(network)["output_blocks_2_1_conv"] is network.get_submodule("up_blocks.0.upsamplers.0.conv")


def test_blocks_may_have_different_numbers_of_layers() -> None:
    network = small_unet(layers_per_block=(1, 2, 3))
    assert named_layers(network)["input_blocks_6_0_in_layers_2"] is network.get_submodule("down_blocks.2.resnets.0.conv1")
    assert named_layers(network)["output_blocks_3_1_proj_in"] is network.get_submodule("up_blocks.0.attentions.3.proj_in")
