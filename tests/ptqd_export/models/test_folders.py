"""What else diffusers folders hold: variants of weights, shards, other channels in or out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.errors import PtqdError, UsageError
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.load import fingerprint, load_model, model_files
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
    assert fingerprint(load(), tmp_path / "table.npz") != first
    (tmp_path / "unet" / "config.json").write_text((tmp_path / "unet" / "config.json").read_text() + "\n")
    assert fingerprint(load(), None) != first


@pytest.mark.parametrize("alone", [True, False])
def test_fingerprint_sees_new_weights_through_links(load: Load, tmp_path: Path, alone: bool) -> None:
    _unet().save_pretrained(tmp_path / "store" / "blobs")
    (tmp_path / "store" / "unet").symlink_to(tmp_path / "store" / "blobs")
    if alone:
        (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "scheduler_config.json")
        for file in (tmp_path / "store" / "blobs").iterdir():
            (tmp_path / file.name).symlink_to(file)
    else:
        (tmp_path / "unet").symlink_to(tmp_path / "store" / "unet")
        (tmp_path / "store" / "blobs" / "loop").symlink_to(tmp_path)
    first = fingerprint(load(), None)
    network = _unet()
    network.conv_in.bias.data += 1
    network.save_pretrained(tmp_path / "store" / "blobs")
    model = load()
    assert _equal(model, network)
    assert fingerprint(model, None) != first


@pytest.mark.parametrize("alone", [True, False])
def test_fingerprint_is_of_the_model_and_not_of_what_else_its_folder_holds(load: Load, tmp_path: Path, alone: bool) -> None:
    _unet().save_pretrained(tmp_path if alone else tmp_path / "unet")
    if alone:
        (tmp_path / "scheduler" / "scheduler_config.json").rename(tmp_path / "scheduler_config.json")
    first = fingerprint(load(), None)
    others = (
        "plan.json",
        "README.md",
        "bundle/manifest.json",
        "bundle/text/tokenizer.json",
        "out/0.png",
        ".git/config.json",
        ".cache/a/config.json",
    )
    for other in (*others, "unet/.cache/a"):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text("{}")
    (tmp_path / "latest").symlink_to(tmp_path)
    assert fingerprint(load(), None) == first


def test_fingerprint_is_of_tokenizers_too(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "unet/config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/added_tokens.json",
        "scheduler/scheduler_config.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = [str(path.relative_to(tmp_path)) for path in model_files(tmp_path)]
    assert files == [
        "config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "tokenizer_2/added_tokens.json",
        "unet/config.json",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(load: Load, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    network = _unet()
    network.mid_block.resnets[0].conv1.weight.data[1, 2] = value
    network.to(dtype).save_pretrained(tmp_path / "unet")
    with pytest.raises(PtqdError, match=r"contain NaN or infinity.\n.*denoiser: mid_block.resnets.0.conv1.weight, 9 of 576 values"):
        load()


def test_decoder_that_is_not_finite_is_refused_but_not_an_encoder(load: Load, tmp_path: Path) -> None:
    from diffusers import VQModel

    _unet().save_pretrained(tmp_path / "unet")
    first_stage = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    first_stage.encoder.conv_in.bias.data[0] = np.nan
    first_stage.save_pretrained(tmp_path / "vqvae")
    assert load().decoder is not None
    first_stage.quantize.embedding.weight.data[3, 1] = np.inf
    first_stage.save_pretrained(tmp_path / "vqvae")
    with pytest.raises(PtqdError, match="the decoder: codes, 1 of 512 values"):
        load()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"out_channels": 4}, r"(?s)does not return images.*shape \[4, 4, 4\].*model_index.json"),
        ({"latent_channels": 4}, r"(?s)does not decode the samples.*vae with 4 channels.*with 2.*the same number of channels"),
    ],
)
def test_decoder_that_makes_no_images_is_refused(load: Load, tmp_path: Path, config: dict[str, int], message: str) -> None:
    from diffusers import AutoencoderKL

    _unet().save_pretrained(tmp_path / "unet")
    AutoencoderKL(**{"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 2, **config}).save_pretrained(tmp_path / "vae")
    with pytest.raises(UsageError, match=message):
        load()
