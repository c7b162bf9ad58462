"""What users name as their model: found, or refused with a message that says what it is and what to name instead."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch

from engines.errors import UsageError
from ptqd_export.models.places.model_place import find_place

CONFIG = json.dumps({"_class_name": "UNet2DModel"})


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return write_pipeline(tmp_path / "pipeline")


def write_pipeline(folder: Path, weights: str = "diffusion_pytorch_model.safetensors") -> Path:
    """Write the files of a pipeline, with a stand-in for its weights."""
    for name, content in (
        ("model_index.json", json.dumps({"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]})),
        ("unet/config.json", CONFIG), (f"unet/{weights}", "weights"), ("scheduler/scheduler_config.json", "{}"),
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def refused(written: object, folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_place(str(written), folder)
    return str(caught.value)


@pytest.mark.parametrize("written", ["pipeline", "pipeline/model_index.json", "./pipeline/", "pipeline/unet/.."])
def test_a_pipeline_is_found(pipeline: Path, written: str) -> None:
    place = find_place(written, pipeline.parent)
    assert place.path.resolve() == pipeline
    assert (pipeline.parent / "plans" / place.written(pipeline.parent / "plans")).resolve() == pipeline


def test_the_index_gives_the_name_of_its_folder(pipeline: Path) -> None:
    place = find_place("pipeline/model_index.json", pipeline.parent)
    assert (place.name, place.written(pipeline.parent)) == ("pipeline", "pipeline")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "is an ONNX graph, which has a key of its own"),
        ("model.ONNX", "is an ONNX graph"),
        ("model-q4.gguf", "weights that are already quantized"),
        ("model.pt", "tensors, but not the network"),
        ("model.pth", "model.factory"),
        ("pytorch_model.bin", "tensors, but not the network"),
        ("model.zip", "is an archive"),
        ("model.tar.gz", "unpack it"),
        ("config.yaml", "is a configuration without weights"),
        ("config.json", "is a configuration without weights"),
        ("model.engine", "is a built engine"),
        ("flax_model.msgpack", "weights of Flax"),
        ("model.h5", "not a model that can be read"),
        ("model", "not a model that can be read"),
    ],
)
def test_other_files_are_told_what_they_are(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    found = refused(name, tmp_path)
    assert message in found
    assert str(tmp_path / name) in found
    assert "save_pretrained" in found


def test_a_checkpoint_that_is_a_pointer_is_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "pointer of Git LFS" in refused("model.ckpt", tmp_path)


@pytest.mark.parametrize("files", [["unet/model.onnx", "vae_decoder/model.onnx"], ["unet/openvino_model.xml", "unet/openvino_model.bin"]])
def test_an_exported_pipeline_is_refused(pipeline: Path, files: list[str]) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for name in files:
        (pipeline / name).parent.mkdir(exist_ok=True)
        (pipeline / name).touch()
    message = refused(pipeline, pipeline)
    assert message.startswith("This folder holds an exported model, and a build starts from the PyTorch model.")
    assert files[0] in message


def test_graphs_beside_the_weights_do_not_matter(pipeline: Path) -> None:
    (pipeline / "unet" / "model.onnx").touch()
    assert find_place("pipeline", pipeline.parent).path == pipeline


def test_a_folder_of_graphs_alone(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert "holds an exported model" in refused(".", tmp_path)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_part_names_its_pipeline(pipeline: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (pipeline / part).mkdir(exist_ok=True)
    (pipeline / part / "config.json").write_text(CONFIG)
    message = refused(pipeline / part, pipeline)
    assert message.startswith("This folder is one part of a pipeline.")
    assert message.endswith(f"name {pipeline}")
    monkeypatch.chdir(pipeline / part)
    assert refused(".", Path()).endswith(f"name {pipeline}")


def test_a_folder_around_the_model_names_it(pipeline: Path) -> None:
    message = refused(".", pipeline.parent)
    assert "is not a model, but holds one" in message
    assert message.endswith(f"name {pipeline}")
    write_pipeline(pipeline.parent / "another")
    message = refused(".", pipeline.parent)
    assert "holds several" in message
    assert "another, pipeline" in message


def test_a_folder_around_a_checkpoint_names_it(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.ckpt")
    assert refused(".", tmp_path).endswith(f"name {tmp_path / 'model.ckpt'}")


def test_a_single_model_beside_others_is_no_part(tmp_path: Path) -> None:
    for name in ("config.json", "scheduler_config.json"):
        (tmp_path / name).write_text(CONFIG)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    assert find_place(".", tmp_path).path == tmp_path


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert f"no folder {tmp_path / 'none'}" in refused("none", tmp_path)
    assert f"no file {tmp_path / 'none.ckpt'}" in refused("none.ckpt", tmp_path)


def test_a_local_folder_that_is_misspelt_is_not_looked_for_on_the_hub(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptqd_export.models.places.model_place.hub_snapshot", lambda *_: pytest.fail("asked the hub"))
    (pipeline.parent / "models").mkdir()
    assert "The model folder is missing." in refused("models/pipelin", pipeline.parent)


def test_an_archive_of_a_pipeline(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("model_index.json", "{}")
    assert "unpack it, and name the folder" in refused("model.zip", tmp_path)
