"""Which files of a folder are its weights: every spelling of variants and shards that diffusers and transformers have written."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import PtqdError, UsageError
from ptqd_export.models.tensors.weight_files import DIFFUSERS, TRANSFORMERS, choose_weights, find_weights

D = "diffusion_pytorch_model"


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema", "ema", "fp32"])
@pytest.mark.parametrize(
    "names",
    [
        [f"{D}.V.safetensors"],
        [f"{D}.safetensors.index.V.json", f"{D}.V-00001-of-00002.safetensors", f"{D}.V-00002-of-00002.safetensors"],
        [f"{D}.safetensors.V.index.json", f"{D}-00001-of-00002.V.safetensors", f"{D}-00002-of-00002.V.safetensors"],
        [f"{D}.V.safetensors.index.json", f"{D}.V-00001-of-00002.safetensors", f"{D}.V-00002-of-00002.safetensors"],
        [f"{D}.V.bin"],
        [f"{D}.bin.index.V.json", f"{D}.V-00001-of-00001.bin"],
    ],
    ids=["whole", "shards", "older shards", "index named like a file", "bin", "bin shards"],
)
def test_a_variant_that_is_alone_is_read(names: list[str], variant: str) -> None:
    files = [name.replace("V", variant) for name in names]
    choice = choose_weights([*files, "config.json", "README.md"], DIFFUSERS, "here")
    assert set(choice.names) == set(files)
    assert (choice.index is None) == (len(files) == 1)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([f"{D}.fp16.safetensors", f"{D}.safetensors", f"{D}.non_ema.safetensors"], f"{D}.safetensors"),
        ([f"{D}.fp16.safetensors", f"{D}.non_ema.safetensors", f"{D}.ema.safetensors"], f"{D}.fp16.safetensors"),
        ([f"{D}.bin", f"{D}.safetensors"], f"{D}.safetensors"),
        ([f"{D}.bin", f"{D}.fp16.safetensors"], f"{D}.bin"),
        ([f"{D}.fp16.bin", f"{D}.fp16.safetensors"], f"{D}.fp16.safetensors"),
        ([f"{D}.fp16.bin", f"{D}.bf16.safetensors"], f"{D}.fp16.bin"),
        ([f"{D}.safetensors", f"{D}.safetensors.index.json", f"{D}-00001-of-00001.safetensors"], f"{D}.safetensors.index.json"),
    ],
)
def test_the_weights_of_diffusers_own_choice_come_first(names: list[str], chosen: str) -> None:
    assert choose_weights(names, DIFFUSERS, "here").names[0] == chosen


def test_transformers_has_other_names_and_prefers_the_whole_file() -> None:
    names = ["model.safetensors", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "pytorch_model.bin"]
    assert choose_weights(names, TRANSFORMERS, "here").names == ("model.safetensors",)
    assert choose_weights(["pytorch_model.fp16.bin"], TRANSFORMERS, "here").names == ("pytorch_model.fp16.bin",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"{D}.ema.safetensors", f"{D}.non_ema.safetensors"],
            r"several variants of its weights.*ema, non_ema.*keep the files",
        ),
        ([f"{D}.ema.safetensors", f"{D}.bf16.bin"], r"several variants.*bf16, ema"),
        (["model.safetensors"], r"have another name.*here: model\.safetensors.*diffusion_pytorch_model\.safetensors.*rename"),
        ([f"{D}-00001-of-00002.safetensors"], r"index of the model's shards is missing.*00001-of-00002"),
        (["config.json", f"{D}.msgpack"], r"no weights that can be read.*config\.json, diffusion_pytorch_model\.msgpack"),
        ([], "an empty folder"),
    ],
)
def test_what_cannot_be_chosen_is_named(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        choose_weights(names, DIFFUSERS, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "no weight_map"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', r"a shard '\.\./secret\.safetensors'"),
        ('{"weight_map": {"a": 1}}', "a shard 1"),
        ('{"weight_map": {"a": "a.txt"}}', r"a shard 'a\.txt'"),
        ('{"weight_map": {"a": "a.bin", ', "is not JSON"),
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / f"{D}.safetensors.index.json").write_text(content)
    with pytest.raises(PtqdError, match=message):
        find_weights(tmp_path, DIFFUSERS)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def test_weights_that_were_not_downloaded_are_named(tmp_path: Path) -> None:
    weights = tmp_path / f"{D}.safetensors"
    weights.write_text(POINTER)
    with pytest.raises(UsageError, match=r"(?s)download is incomplete.*pointer of Git LFS.*git lfs pull"):
        find_weights(tmp_path, DIFFUSERS)
    weights.write_text("")
    with pytest.raises(UsageError, match="is empty"):
        find_weights(tmp_path, DIFFUSERS)


def test_a_link_of_a_hub_cache_without_its_blob_says_how_to_download_it(tmp_path: Path) -> None:
    folder = tmp_path / "models--who--what--v1" / "snapshots" / "abc" / "unet"
    folder.mkdir(parents=True)
    (folder / f"{D}.safetensors").symlink_to("../../../blobs/1234")
    with pytest.raises(UsageError, match=r"(?s)a link to \.\./\.\./\.\./blobs/1234, which is missing.*`hf download who/what--v1`"):
        find_weights(folder, DIFFUSERS)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / f"{D}.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{D}-00001-of-00001.safetensors"}}}}')
    with pytest.raises(UsageError, match=r"no file .*-00001-of-00001\.safetensors"):
        find_weights(tmp_path, DIFFUSERS)
