from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from engines.errors import PtqdError
from ptqd_export.models.lora.lora_keys import parse_key
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


def test_a_diffusers_without_the_conversions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.utils.state_dict_utils", None)
    with pytest.raises(PtqdError, match=r"diffusers cannot convert keys(.|\n)*install a version of diffusers"):
        parse_key("unet.proj.lora_A.weight")


def test_a_key_of_another_kind_means_nothing() -> None:
    assert [parse_key(key) for key in ("proj.weight", "lora_unet_proj.oft_blocks", "unet:0:up", "")] == [None] * 4
