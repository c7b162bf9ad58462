"""Models of the hub: a cache as huggingface_hub lays it out, and a hub that answers as the real one does, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import errors

from engines.errors import UsageError
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.load import fingerprint, load_model, model_files
from ptqd_export.models.places.hub_files import wanted_files
from ptqd_export.models.places.hub_model import HubModel
from ptqd_export.models.places.model_place import find_place
from ptqd_export.plan import Plan, PlanFile

COMMIT, OTHER = "a" * 40, "b" * 40
ID = "who/what-v1"
UNET = {
    "sample_size": 4, "in_channels": 2, "out_channels": 2, "layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline as `save_pretrained` writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    DDPMPipeline(UNet2DModel(**UNET), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that cannot be reached."""

    def offline(*_: object, **__: object) -> object:
        raise errors.OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    return tmp_path / "hub"


def put(cache: Path, saved: Path, commit: str = COMMIT, *, main: bool = True) -> Path:
    """Put a pipeline into the cache: the blobs, and a snapshot of links to them."""
    folder = cache / "models--who--what-v1"
    for number, path in enumerate(sorted(path for path in saved.rglob("*") if path.is_file())):
        blob, link = folder / "blobs" / f"{number}", folder / "snapshots" / commit / path.relative_to(saved)
        for one in (blob, link):
            one.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(Path(*[".."] * (len(link.relative_to(folder).parts) - 1)) / "blobs" / blob.name)
    (folder / "refs").mkdir(exist_ok=True)
    if main:
        (folder / "refs" / "main").write_text(commit)
    return folder


def refused(written: str, folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        find_place(written, folder)
    return str(caught.value)


@pytest.mark.parametrize(
    "written", [ID, f"{ID}@main", f"{ID}@{COMMIT}", f"https://huggingface.co/{ID}", f"https:/huggingface.co/{ID}/tree/main", f"hf.co/{ID}"]
)
def test_an_id_is_found_in_the_cache(cache: Path, saved: Path, tmp_path: Path, written: str) -> None:
    folder = put(cache, saved)
    if written.startswith("hf.co"):
        assert HubModel.parse(written) is None
        return
    place = find_place(written, tmp_path)
    assert place.path == folder / "snapshots" / COMMIT
    assert (place.name, place.written(tmp_path)) == ("what-v1", f"{ID}@{COMMIT}")


def test_the_folder_of_a_cached_model_is_its_main_snapshot(cache: Path, saved: Path, tmp_path: Path) -> None:
    folder = put(cache, saved)
    put(cache, saved, OTHER, main=False)
    place = find_place(str(folder), tmp_path)
    assert place.path == folder / "snapshots" / COMMIT
    assert (place.name, place.written(tmp_path)) == ("what-v1", f"hub/models--who--what-v1/snapshots/{COMMIT}")


def test_without_main_the_only_snapshot_is_taken_and_of_several_none(cache: Path, saved: Path, tmp_path: Path) -> None:
    folder = put(cache, saved, main=False)
    assert find_place(ID, tmp_path).path == folder / "snapshots" / COMMIT
    put(cache, saved, OTHER, main=False)
    for written in (ID, str(folder)):
        assert f"{COMMIT}, {OTHER}" in refused(written, tmp_path)


def test_a_plan_names_the_commit_and_builds_the_same_model_after_main_has_moved(cache: Path, saved: Path, tmp_path: Path) -> None:
    put(cache, saved)
    plan = starter_plan(ID, "onnxruntime", tmp_path)
    assert (plan.model.path, plan.output) == (f"{ID}@{COMMIT}", "build/what-v1")
    put(cache, saved, OTHER)
    changed = cache / "models--who--what-v1" / "snapshots" / OTHER / "unet" / "config.json"
    changed.unlink()
    changed.write_text(json.dumps({"_class_name": "UNet1DModel"}))
    model = load_model(PlanFile(plan, tmp_path))
    local = load_model(PlanFile(Plan.model_validate(plan.model_dump() | {"model": {"path": str(saved)}}), tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.adapter.parameters(), local.adapter.parameters(), strict=True))
    assert fingerprint(model, None) == fingerprint(local, None)  # of links and of files


def test_a_local_folder_takes_precedence(cache: Path, saved: Path, tmp_path: Path) -> None:
    put(cache, saved)
    (tmp_path / "who").mkdir()
    (tmp_path / "who" / "what-v1").symlink_to(saved)
    assert find_place(ID, tmp_path).path == tmp_path / ID


def test_what_is_neither_here_nor_reachable_says_how_to_get_it(cache: Path, tmp_path: Path) -> None:
    message = refused(f"{ID}@v2", tmp_path)
    assert "not complete on this machine, and cannot be downloaded" in message
    assert f"no folder {tmp_path / ID}@v2; {ID}@v2 is not in the cache {cache}" in message
    assert "offline mode is enabled" in message
    assert f"run `hf download {ID} --revision v2` where there is a network" in message


@pytest.mark.parametrize("lost", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler"])
@pytest.mark.parametrize("way", ["blob", "link"])
def test_a_download_that_was_interrupted_is_not_taken(cache: Path, saved: Path, tmp_path: Path, lost: str, way: str) -> None:
    snapshot = put(cache, saved) / "snapshots" / COMMIT
    path = snapshot / (f"{lost}/scheduler_config.json" if lost == "scheduler" else lost)
    if way == "blob":
        path.resolve().rename(path.resolve().with_suffix(".incomplete"))
    else:
        path.unlink()
    message = refused(ID, tmp_path)
    assert "not complete on this machine" in message
    assert lost.rpartition("/")[0] in message
    assert f"`hf download {ID}`" in message


def test_a_cached_folder_without_a_snapshot_is_incomplete(cache: Path, tmp_path: Path) -> None:
    folder = cache / "models--who--what-v1"
    (folder / "blobs").mkdir(parents=True)
    assert "`hf download who/what-v1`" in refused(str(folder), tmp_path)


@pytest.mark.parametrize("commit", ["../../../elsewhere", "", "a/b"])
def test_a_reference_does_not_lead_out_of_the_cache(cache: Path, saved: Path, tmp_path: Path, commit: str) -> None:
    folder = put(cache, saved)
    (folder / "refs" / "main").write_text(commit)
    assert find_place(str(folder), tmp_path).path == folder / "snapshots" / COMMIT


@pytest.mark.parametrize(
    "written", ["what", "who/what/unet", "../what", "who/../what", "who/what@", "who /what", "who/what--v1", "a" * 60 + "/" + "b" * 60]
)
def test_what_is_no_id(written: str) -> None:
    assert HubModel.parse(written) is None


Answer = Callable[..., Any]


def hub(monkeypatch: pytest.MonkeyPatch, answer: Answer, download: Answer) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _self, *arguments, **options: answer(*arguments, **options))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_what_is_missing_is_downloaded(cache: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        return str(put(cache, saved) / "snapshots" / COMMIT)

    names = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    hub(monkeypatch, lambda *_, **__: SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names]), download)
    assert find_place(ID, tmp_path).path.name == COMMIT
    assert find_place(f"{ID}@{COMMIT}", tmp_path).path.name == COMMIT
    assert asked == [{"name": ID, "revision": "main", "allow_patterns": sorted(names)}]


def _answer(kind: type[Exception]) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]  # what the hub's client passes


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: _answer(errors.GatedRepoError), r"those who accepted its terms.*huggingface\.co/who/what-v1"),
        (lambda: _answer(errors.RepositoryNotFoundError), "neither here nor on the hub.*hf auth login"),
        (lambda: _answer(errors.RevisionNotFoundError), "no such revision"),
        (lambda: OSError("Name or service not known"), "cannot be downloaded.*OSError: Name or service not known"),
        (lambda: TimeoutError(), "cannot be downloaded.*TimeoutError"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_the_hub_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], message: str
) -> None:
    def answer(*_: object, **__: object) -> object:
        raise error()

    hub(monkeypatch, answer, answer)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        find_place(ID, tmp_path)


def test_a_download_leaves_out_what_a_build_does_not_read() -> None:
    wanted = {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.bin",
    }  # fmt: skip
    others = {
        "README.md", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "safety_checker/model.safetensors", "safety_checker/config.json",
        "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_flax_model.msgpack", "unet/model.onnx", "vae/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "sub/unet/config.json",
    }  # fmt: skip
    assert set(wanted_files(sorted(wanted | others))) == wanted


def test_files_of_linked_parts_count_and_hidden_ones_do_not(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "composed"
    (folder / ".cache").mkdir(parents=True)
    (folder / ".cache" / "x.metadata").write_text("1234.5")
    (folder / "unet").symlink_to(saved / "unet")
    (folder / "around").symlink_to(folder)
    assert [path.relative_to(folder).as_posix() for path in model_files(folder)] == [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
