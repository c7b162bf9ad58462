"""Files and folders, and the settings that PEFT keeps beside the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engines.errors import PtqdError, UsageError
from engines.host.files import sha256
from engines.networks.lora.lora_file import read_lora_file
from ptqd_export.models.lora import load_lora
from tests.ptqd_export.models.lora.loras import RANK, SCALE, array, factors, fused_by_hand, network_with, small_unet, write_peft

NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
DOWN, UP = f"{NAME}.lora_A.weight", f"{NAME}.lora_B.weight"


@pytest.mark.parametrize("named", ["folder", "file"])
@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({}, 6.0),
        ({"use_rslora": True}, 6.0 * RANK**0.5),
        ({"alpha_pattern": {"to_k": 1, "attn1.to_q": 3}}, 3.0),
        ({"alpha_pattern": {"^attn1.to_q": 3}}, 6.0),
        ({"alpha_pattern": {f"^{NAME}": 3, "to_q": 5}}, 3.0),
        ({"alpha_pattern": {r"down_blocks.*(to_q|to_k)": 5}}, 5.0),
        ({"r": 9, "rank_pattern": {"to_q": RANK}, "fan_in_fan_out": True, "modules_to_save": ["absent"]}, 6.0),
    ],
)
def test_an_adapter_of_peft_is_scaled_by_its_settings(tmp_path: Path, config: dict[str, Any], alpha: float, named: str) -> None:
    layer = nn.Linear(6, 4)
    before, (down, up) = array(layer.weight), factors(layer)
    folder = write_peft(tmp_path, {DOWN: down, UP: up}, **config)
    lora = load_lora(folder if named == "folder" else folder / "adapter_model.safetensors", SCALE)
    lora.fuse("unet", network_with(NAME, layer))
    np.testing.assert_allclose(array(layer.weight), fused_by_hand(before, down, up, alpha), atol=1e-5)
    assert lora.files == (folder / "adapter_model.safetensors", folder / "adapter_config.json")


def test_an_adapter_of_peft_finds_its_network(tmp_path: Path) -> None:
    unet, text = small_unet(), network_with("text_model.encoder.layers.0.mlp.fc1", nn.Linear(6, 4))
    down, up = factors(unet.get_submodule(NAME))
    lora = load_lora(write_peft(tmp_path, {DOWN: down, UP: up}), SCALE)
    assert list(lora.placed([("text_encoder", text), ("unet", unet)]).layers) == ["unet"]
    with pytest.raises(UsageError, match=r"0 in text_encoder \(not down_blocks"):
        lora.placed([("text_encoder", text)])


def test_a_name_of_the_network_may_follow_pefts(tmp_path: Path) -> None:
    layer = nn.Linear(6, 4)
    before, (down, up) = array(layer.weight), factors(layer)
    load_lora(write_peft(tmp_path, {"unet." + DOWN: down, "unet." + UP: up}), SCALE).fuse("unet", network_with(NAME, layer))
    np.testing.assert_allclose(array(layer.weight), fused_by_hand(before, down, up, 6.0), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOKR"}, "adapter_config.json: peft_type = LOKR"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"use_dora": True}, "expected: magnitude too"),
        ({"r": 8}, "rank 8 for down_blocks"),
        ({"lora_alpha": None}, "no lora_alpha in"),
        ({"alpha_pattern": 3}, "alpha_pattern = 3"),
    ],
)
def test_settings_that_the_factors_do_not_bear_out_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write_peft(tmp_path, {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK)}, **config)
    with pytest.raises(UsageError, match=message):
        load_lora(folder, SCALE)


@pytest.mark.parametrize("key", [f"{NAME}.bias", f"{NAME}.base_layer.bias", "conv_out.weight"])
def test_whole_weights_of_peft_are_refused(tmp_path: Path, key: str) -> None:
    folder = write_peft(tmp_path, {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK), key: torch.ones(4)})
    with pytest.raises(UsageError, match="whole weight or bias"):
        load_lora(folder, SCALE)


def test_an_adapter_without_its_settings_is_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK)})
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match=r"copy adapter_config\.json"):
        load_lora(tmp_path, SCALE)


def test_settings_of_another_file_in_the_folder_are_not_read(tmp_path: Path) -> None:
    write_peft(tmp_path, {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK)}, peft_type="LOKR")
    save_file({f"unet.{DOWN}": torch.ones(RANK, 6), f"unet.{UP}": torch.ones(4, RANK)}, tmp_path / "style.safetensors")
    assert load_lora(tmp_path / "style.safetensors", SCALE).files == (tmp_path / "style.safetensors",)


def test_a_folder_of_diffusers_is_read(tmp_path: Path) -> None:
    save_file({f"unet.{DOWN}": torch.ones(RANK, 6), f"unet.{UP}": torch.ones(4, RANK)}, tmp_path / "pytorch_lora_weights.safetensors")
    assert list(load_lora(tmp_path, SCALE).layers) == ["unet"]


def test_a_missing_a_damaged_and_an_empty_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="The LoRA is missing"):
        load_lora(tmp_path / "lora.safetensors", SCALE)
    (tmp_path / "lora.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PtqdError, match="cannot be read"):
        load_lora(tmp_path / "lora.safetensors", SCALE)
    save_file({}, tmp_path / "lora.safetensors")
    with pytest.raises(UsageError, match="The LoRA is empty"):
        load_lora(tmp_path / "lora.safetensors", SCALE)
    with pytest.raises(UsageError, match=r"not that of one LoRA(.|\n)*with lora.safetensors"):
        load_lora(tmp_path, SCALE)


def test_the_digest_is_that_of_all_that_counts(tmp_path: Path) -> None:
    tensors = {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK)}
    found = [read_lora_file(write_peft(tmp_path, tensors, lora_alpha=alpha)).sha256 for alpha in (3, 5)]
    weights, settings = (tmp_path / name for name in ("adapter_model.safetensors", "adapter_config.json"))
    assert found[0] != found[1] == hashlib.sha256(weights.read_bytes() + settings.read_bytes()).hexdigest()
    save_file({f"unet.{DOWN}": torch.ones(RANK, 6), f"unet.{UP}": torch.ones(4, RANK)}, tmp_path / "style.safetensors")
    assert read_lora_file(tmp_path / "style.safetensors").sha256 == sha256(tmp_path / "style.safetensors")


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    write_peft(tmp_path, {DOWN: torch.ones(RANK, 6), UP: torch.ones(4, RANK)})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 3})[:-1])
    with pytest.raises(UsageError, match="is not JSON"):
        load_lora(tmp_path, SCALE)
