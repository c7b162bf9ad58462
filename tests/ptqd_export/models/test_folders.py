"""What else diffusers folders hold: variants of weights, shards, other channels in or out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.errors import UsageError
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import fingerprint, load_model
from ptqd_export.plan import Plan, PlanFile

TINY = {
    "sample_size": 4, "layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4, "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}  # fmt: skip
REST = {
    "sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"], "target": {"name": "onnxruntime"}, "output": "bundle",
}  # fmt: skip

Load = Callable[..., LoadedModel]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a network saved in `tmp_path / "unet"`."""
    from diffusers import DDIMScheduler

    DDIMScheduler().save_pretrained(tmp_path / "scheduler")

    def load(**section: Any) -> LoadedModel:
        return load_model(PlanFile(Plan.model_validate({"model": {"path": ".", **section}, **REST}), tmp_path))

    return load


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(**{**TINY, "in_channels": 2, "out_channels": 2, **config})


def _equal(model: LoadedModel, network: Any) -> bool:
    found, expected = model.adapter.network.state_dict(), network.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], value.float()) for name, value in expected.items())


def test_weights_in_shards(load: Load, tmp_path: Path) -> None:
    network = _unet()
    network.save_pretrained(tmp_path / "unet", max_shard_size="20KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    assert _equal(load(), network)


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}], ids=["whole", "shards"])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_variant_that_is_alone_is_read_as_float32(load: Load, tmp_path: Path, variant: str, shards: dict[str, str]) -> None:
    network = _unet().to(torch.float32 if variant == "non_ema" else torch.bfloat16 if variant == "bf16" else torch.float16)
    network.save_pretrained(tmp_path / "unet", variant=variant, **shards)
    model = load()
    assert {value.dtype for value in model.adapter.network.parameters()} == {torch.float32}
    assert _equal(model, network)


def test_full_precision_is_preferred_to_its_variant(load: Load, tmp_path: Path) -> None:
    network = _unet()
    network.save_pretrained(tmp_path / "unet")
    _unet().half().save_pretrained(tmp_path / "unet", variant="fp16")
    assert _equal(load(), network)


def test_single_model_folder(load: Load, tmp_path: Path) -> None:
    network = _unet()
    network.save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "unet" / "scheduler_config.json")
    assert _equal(load(path="unet"), network)


def test_learned_variances_are_left_out(load: Load, tmp_path: Path) -> None:
    network = _unet(out_channels=4)
    network.save_pretrained(tmp_path / "unet")
    model = load()
    inputs = model.example_inputs(2)
    assert model.sample_shape == (2, 4, 4)
    torch.testing.assert_close(model.adapter(*inputs), network(*inputs).sample[:, :2])


def test_image_comes_behind_the_state_and_embeddings_keep_their_name(load: Load, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        **TINY | {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)},
        in_channels=5, out_channels=2, attention_head_dim=4, cross_attention_dim=6,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "unet")
    rng = np.random.default_rng(0)
    arrays = {"image": rng.random((3, 3, 4, 4), np.float32), "encoder_hidden_states": rng.random((3, 7, 6), np.float32)}
    np.savez(tmp_path / "table.npz", allow_pickle=False, **arrays)
    model = load(conditions="table.npz")
    assert model.adapter.conditions == ("encoder_hidden_states", "image")
    assert model.sample_shape == (2, 4, 4)
    state, timestep, embeddings, image = model.example_inputs(3)
    expected = network(torch.cat([state, image], dim=1), timestep, embeddings).sample
    torch.testing.assert_close(model.adapter(state, timestep, embeddings, image), expected)


def test_labels_beside_an_image_come_from_the_table(load: Load, tmp_path: Path) -> None:
    _unet(in_channels=3, num_class_embeds=5).save_pretrained(tmp_path / "unet")
    table = {"class_labels": np.array([4, 1]), "image": np.zeros((2, 1, 4, 4), np.float32)}
    np.savez(tmp_path / "table.npz", allow_pickle=False, **table)
    model = load(conditions="table.npz")
    assert model.conditioning is not None
    assert model.conditioning.tables["class_labels"].tolist() == [4, 1]
    np.savez(tmp_path / "table.npz", allow_pickle=False, **table | {"class_labels": np.array([5, 1])})
    with pytest.raises(UsageError, match=r"(?s)does not fit the model.*class_labels: int64 \[rows\], image: float32 \[rows, 1, 4, 4\]"):
        load(conditions="table.npz")


def test_parts_that_the_index_does_not_list_are_not_looked_at(load: Load, tmp_path: Path) -> None:
    from diffusers import VQModel

    _unet().save_pretrained(tmp_path / "unet")
    VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=2).save_pretrained(tmp_path / "vqvae")
    assert load().decoder is not None
    index = {"_class_name": "DDIMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert load().decoder is None


def test_fingerprint_is_of_every_file_and_of_the_conditions(load: Load, tmp_path: Path) -> None:
    _unet().save_pretrained(tmp_path / "unet")
    first = fingerprint(load(), None)
    assert fingerprint(load(), None) == first
    (tmp_path / "table.npz").write_bytes(b"0")
    assert fingerprint(load(), tmp_path / "table.npz") != fingerprint(load(), None) != first
