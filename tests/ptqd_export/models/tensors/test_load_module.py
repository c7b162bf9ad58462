"""Modules get exactly the tensors of their folder, in whatever files they lie; diffusers' own module is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from safetensors.torch import save_file
from torch import Tensor

from engines.errors import PtqdError
from ptqd_export.models.tensors.load_module import load_module
from ptqd_export.models.tensors.weight_files import DIFFUSERS

STEM = "diffusion_pytorch_model"
UNET = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip


@pytest.fixture
def network(tmp_path: Path) -> Any:
    """A U-Net whose configuration lies in the folder."""
    torch.manual_seed(0)
    network = UNet2DModel(**UNET)
    network.save_config(tmp_path)
    return network


def _equal(folder: Path, network: Any, kind: Any = UNet2DModel) -> bool:
    found, expected = load_module(kind, folder, DIFFUSERS, low_cpu_mem_usage=False).state_dict(), network.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


def _halves(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = list(tensors)
    return {name: tensors[name] for name in names[::2]}, {name: tensors[name] for name in names[1::2]}


def test_a_bin_file_is_read(network: Any, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / f"{STEM}.bin")
    assert _equal(tmp_path, network)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", f"{STEM}.bin"]


def test_parameters_views_and_shared_storages_in_a_bin_file(network: Any, tmp_path: Path) -> None:
    flat = torch.cat([value.flatten() for value in network.state_dict().values()])
    sizes = [value.numel() for value in network.state_dict().values()]
    views = {name: part.view(value.shape) for (name, value), part in zip(network.state_dict().items(), flat.split(sizes), strict=True)}
    views["conv_in.weight"] = views["conv_in.weight"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    torch.save({name: torch.nn.Parameter(value) for name, value in views.items()}, tmp_path / f"{STEM}.bin")
    assert _equal(tmp_path, network)


@pytest.mark.parametrize("index", [f"{STEM}.bin.index.json", f"{STEM}.bin.index.bf16.json", f"{STEM}.bf16.bin.index.json"])
def test_shards_of_bin_files(network: Any, tmp_path: Path, index: str) -> None:
    shard_of: dict[str, str] = {}
    for number, half in enumerate(_halves(network.state_dict()), 1):
        name = f"{STEM}{'.bf16' if 'bf16' in index else ''}-0000{number}-of-00002.bin"
        torch.save(half, tmp_path / name)
        shard_of |= dict.fromkeys(half, name)
    (tmp_path / index).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    assert _equal(tmp_path, network)


def test_shards_whose_index_says_nothing_else(network: Any, tmp_path: Path) -> None:
    shard_of: dict[str, str] = {}
    for number, half in enumerate(_halves(network.state_dict()), 1):
        name = f"{STEM}-0000{number}-of-00002.non_ema.safetensors"
        save_file(half, tmp_path / name)
        shard_of |= dict.fromkeys(half, name)
    (tmp_path / f"{STEM}.safetensors.non_ema.index.json").write_text(json.dumps({"weight_map": shard_of}))
    assert _equal(tmp_path, network)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_old_names_of_attention_are_translated(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    network = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    network.save_config(tmp_path)
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    tensors = {}
    for name, value in network.state_dict().items():
        for now, before in old.items():
            name = name.replace(now, before)
        tensors[name] = value
    assert sum("query" in name for name in tensors) == 4
    if suffix == "bin":
        torch.save(tensors, tmp_path / f"{STEM}.bin")
    else:
        save_file(tensors, tmp_path / f"{STEM}.safetensors")
    assert _equal(tmp_path, network, VQModel)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("conv_in.bias"), r"the weights lack conv_in\.bias"),
        (lambda tensors: tensors.update({"conv_in.extra": torch.ones(1)}), r"have a tensor more: conv_in\.extra"),
    ],
)
def test_tensors_that_do_not_fit_are_named(network: Any, tmp_path: Path, change: Any, message: str, suffix: str) -> None:
    tensors = dict(network.state_dict())
    change(tensors)
    if suffix == "bin":
        torch.save(tensors, tmp_path / f"{STEM}.bin")
    else:
        save_file(tensors, tmp_path / f"{STEM}.safetensors")
    with pytest.raises(PtqdError, match=rf"(?s)do not fit its configuration.*{message}"):
        load_module(UNet2DModel, tmp_path, DIFFUSERS, low_cpu_mem_usage=False)


def test_another_shape_and_a_file_that_is_no_archive_are_named(network: Any, tmp_path: Path) -> None:
    torch.save(dict(network.state_dict()) | {"conv_in.bias": torch.ones(3)}, tmp_path / f"{STEM}.bin")
    with pytest.raises(PtqdError, match=r"(?s)cannot be read.*found: .*config"):
        load_module(UNet2DModel, tmp_path, DIFFUSERS, low_cpu_mem_usage=False)
    (tmp_path / f"{STEM}.bin").write_bytes(b"PK no archive")
    with pytest.raises(PtqdError, match=rf"(?s)cannot be read.*{STEM}\.bin"):
        load_module(UNet2DModel, tmp_path, DIFFUSERS, low_cpu_mem_usage=False)


@pytest.mark.parametrize(("suffix", "dtype"), [("safetensors", torch.float8_e4m3fn), ("safetensors", torch.int8), ("bin", torch.int8)])
def test_quantized_weights_are_refused_not_cast(network: Any, tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    tensors = network.state_dict() | {"conv_in.weight": network.conv_in.weight.to(dtype)}
    (save_file if suffix == "safetensors" else torch.save)(tensors, tmp_path / f"{STEM}.{suffix}")
    with pytest.raises(PtqdError, match=r"(?s)quantized already.*conv_in\.weight, .*8.*mend: +take the weights as they were trained"):
        load_module(UNet2DModel, tmp_path, DIFFUSERS, low_cpu_mem_usage=False)
