from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from engines.networks.lora.lora_keys import parse_key
from tests.ptqd_export.models.lora.loras import RANK, array, factors, fuse, fused_by_hand


@pytest.mark.parametrize("spelling", ["transformer.{}.lora_A.weight", "{}.lora.down.weight", "lora_unet_{}.lora_down.weight"])
def test_every_layer_of_a_transformer_is_found(tmp_path: Path, spelling: str) -> None:
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=2, num_layers=2, sample_size=4)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    before = {name: array(layer.weight) for name, layer in layers.items()}
    tensors = {}
    for name, layer in layers.items():
        key = spelling.format(name.replace(".", "_") if spelling.startswith("lora_unet") else name)
        tensors[key], tensors[key.replace("lora_A", "lora_B").replace("down", "up")] = factors(layer)
    fuse(tmp_path, tensors, "unet", network)
    for name, layer in layers.items():
        np.testing.assert_allclose(array(layer.weight), fused_by_hand(before[name], *factors(layer), RANK), atol=1e-5)


def test_a_bias_belongs_to_the_second_factor_alone() -> None:
    kinds = [parse_key(f"unet.proj.{end}") for end in ("lora_B.bias", "lora_B.default.bias", "lora_A.bias", "lora_magnitude_vector.bias")]
    assert [None if found is None else found.kind for found in kinds] == ["up_bias", "up_bias", None, None]


@pytest.mark.parametrize("text", [False, True])
def test_keys_of_older_versions_are_converted_as_diffusers_does(text: bool) -> None:
    from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    layers = (
        "attn1.processor.to_{}_lora",
        "attn1.to_{}_lora",
        "attn.{}_proj.lora_linear_layer",
        "attn1.processor.to_{}.lora",
        "to_{}.lora",
    )
    names = [f"block.{layer.format(one)}.{end}.weight" for layer in layers for one in ("q", "k", "v", "out") for end in ("down", "up")]
    for name in [*names, "attn1.to_out.lora_magnitude_vector", "text_projection.lora.down.weight"]:
        found: dict[str, None] = {name: None}
        if text:
            found = convert_state_dict_to_peft(found, StateDictType.DIFFUSERS_OLD)
        (converted,) = convert_unet_state_dict_to_peft(convert_state_dict_to_peft(found, StateDictType.DIFFUSERS))
        prefix = "text_encoder." if text else "unet."
        assert parse_key(prefix + name) == parse_key(prefix + converted) is not None


def test_a_key_of_another_kind_means_nothing() -> None:
    assert [parse_key(key) for key in ("proj.weight", "lora_unet_proj.oft_blocks", "unet:0:up", "")] == [None] * 4
