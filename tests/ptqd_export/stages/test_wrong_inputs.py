"""What a user can get wrong: one message that says how to mend it, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from ptqd_export.cli import main

Change = Callable[[Path], object]


@pytest.fixture
def build(class_model: Path, tmp_path: Path) -> Callable[..., Result]:
    """`ptqd-export build` of a plan with changed sections, on a copy of the class-conditional model that was changed before."""

    def run(change: Change = lambda _folder: None, **sections: Any) -> Result:
        shutil.copytree(class_model, tmp_path / "model")
        change(tmp_path)
        plan = {
            "model": {"path": "model"}, "sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"],
            "target": {"name": "onnxruntime"}, "output": "bundle",
        }  # fmt: skip
        (tmp_path / "plan.json").write_text(json.dumps(plan | sections))
        before = _tree(tmp_path)
        result = CliRunner().invoke(main, ["build", "--plan", str(tmp_path / "plan.json")])
        assert _tree(tmp_path) == before
        assert result.stdout == ""
        return result

    return run


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def _refused(result: Result, exit_code: int, *parts: str) -> None:
    assert result.exit_code == exit_code, result.stderr
    assert any(line.startswith("error: ") for line in result.stderr.splitlines())  # a build has named its first stage before
    assert "this is a bug" not in result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def _edit(name: str, **changes: Any) -> Change:
    def edit(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


CROSS = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8],
    "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip


def _conditional(**arrays: Any) -> Change:
    """Make it a model of embeddings, as far as its configuration goes, and write their table."""

    def change(folder: Path) -> None:
        (folder / "model" / "unet" / "config.json").write_text(json.dumps(CROSS))
        if arrays:
            np.savez(folder / "conditions.npz", **arrays)

    return change


class _Attack:
    """Creates a folder when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("attacked",)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SAMPLER = {"name": "ddim", "steps": 2}


def test_missing_model_folder(build: Callable[..., Result]) -> None:
    _refused(build(model={"path": "nowhere"}), 2, "The model folder is missing.", "nowhere", "correct model.path")


@pytest.mark.parametrize(("name", "wrong"), [("unet", "has no denoiser"), ("scheduler", "missing or incomplete")])
def test_folder_that_holds_no_pipeline(build: Callable[..., Result], name: str, wrong: str) -> None:
    result = build(lambda folder: shutil.rmtree(folder / "model" / name))
    _refused(result, 2, wrong, name, "save_pretrained")


def test_configuration_that_is_no_json(build: Callable[..., Result]) -> None:
    result = build(lambda folder: (folder / "model" / "unet" / "config.json").write_text("{half"))
    _refused(result, 1, "config.json is not JSON")


def test_network_of_another_kind(build: Callable[..., Result]) -> None:
    result = build(_edit("unet/config.json", _class_name="UNet1DModel"))
    _refused(result, 2, "not supported", "UNet1DModel", "UNet2DModel")


def test_truncated_weights(build: Callable[..., Result]) -> None:
    def truncate(folder: Path) -> None:
        path = folder / "model" / WEIGHTS
        path.write_bytes(path.read_bytes()[:5000])

    _refused(build(truncate), 1, "weights cannot be read", "complete files")


def test_pickled_weights_run_nothing(build: Callable[..., Result]) -> None:
    def attack(folder: Path) -> None:
        (folder / "model" / WEIGHTS).unlink()
        torch.save({"conv_in.weight": _Attack()}, folder / "model" / "unet" / "diffusion_pytorch_model.bin")

    _refused(build(attack), 1, "would run code", "posix.mkdir")
    assert not Path("attacked").exists()


def test_weights_of_another_architecture(build: Callable[..., Result]) -> None:
    _refused(build(_edit("unet/config.json", block_out_channels=[32, 32])), 1, "weights cannot be read")


def test_output_of_other_channels_than_the_state(build: Callable[..., Result]) -> None:
    _refused(build(_edit("unet/config.json", out_channels=3)), 2, "not shaped like its state", "1 channels in, 3 out")


def test_model_without_a_sample_size(build: Callable[..., Result]) -> None:
    _refused(build(_edit("unet/config.json", sample_size=None)), 2, "does not say how large its samples are", "config.json")


def test_more_steps_than_the_model_was_trained_with(build: Callable[..., Result]) -> None:
    _refused(build(sampler=SAMPLER | {"steps": 1001}), 2, "steps = 1001", "1000")


def test_guidance_without_a_null_condition(build: Callable[..., Result]) -> None:
    change = _conditional(encoder_hidden_states=np.zeros((3, 5, 12), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptqd_export.models.diffusers_folder.load_weights", lambda *_: nn.Identity())
        result = build(change, model={"path": "model", "conditions": "conditions.npz"}, sampler=SAMPLER | {"guidance": 2.0})
    _refused(result, 2, "cannot be guided", "guidance 2", "set sampler.guidance to 1")


def test_guidance_of_an_unconditional_model(build: Callable[..., Result]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ptqd_export.models.diffusers_folder.load_weights", lambda *_: nn.Identity())
        result = build(_edit("unet/config.json", num_class_embeds=None), sampler=SAMPLER | {"guidance": 1.5})
    _refused(result, 2, "cannot be guided", "guidance 1.5")


@pytest.mark.parametrize("null_class", [4, 100])
def test_null_class_that_the_model_does_not_have(build: Callable[..., Result], null_class: int) -> None:
    _refused(build(model={"path": "model", "null_class": null_class}), 2, f"model.null_class = {null_class}", "0..3")


def test_classes_of_a_model_without_them(build: Callable[..., Result]) -> None:
    result = build(_edit("unet/config.json", num_class_embeds=None), model={"path": "model", "null_class": 0})
    _refused(result, 2, "has no classes")


def test_embeddings_for_a_model_of_classes(build: Callable[..., Result]) -> None:
    _refused(build(model={"path": "model", "conditions": "conditions.npz"}), 2, "takes no embeddings")


def test_embeddings_that_are_missing(build: Callable[..., Result]) -> None:
    result = build(_conditional(), model={"path": "model", "conditions": "conditions.npz"})
    _refused(result, 2, "conditioning file cannot be read", "conditions.npz")


def test_embeddings_that_the_plan_does_not_name(build: Callable[..., Result]) -> None:
    _refused(build(_conditional()), 2, "takes embeddings, but the plan names none", "encoder_hidden_states: float32 [rows, tokens, 12]")


@pytest.mark.parametrize(
    "arrays",
    [
        {"encoder_hidden_states": np.zeros((3, 5, 7), np.float32)},
        {"encoder_hidden_states": np.zeros((3, 12), np.float32)},
        {"encoder_hidden_states": np.zeros((3, 5, 12), np.int64)},
        {"hidden_states": np.zeros((3, 5, 12), np.float32)},
        {"encoder_hidden_states": np.zeros((3, 5, 12), np.float32), "more": np.zeros((3, 2), np.float32)},
    ],
    ids=["width", "rank", "integers", "name", "extra"],
)
def test_embeddings_that_do_not_fit_the_model(build: Callable[..., Result], arrays: dict[str, Any]) -> None:
    result = build(_conditional(**arrays), model={"path": "model", "conditions": "conditions.npz"})
    _refused(result, 2, "does not fit the model", "encoder_hidden_states: float32 [rows, tokens, 12]")


def test_half_precision_on_a_runtime_without_it(build: Callable[..., Result]) -> None:
    _refused(build(precisions=["w8a8", "fp16"]), 2, "a target with fp16 engines", '"tensorrt" or "tensorrt-rtx"')


def test_output_below_a_file(build: Callable[..., Result]) -> None:
    result = build(lambda folder: (folder / "file").write_text("here first"), output="file/bundle")
    _refused(result, 2, "output folder cannot be written", "file/bundle")


def test_plan_that_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["build", "--plan", str(tmp_path / "plan.json")])
    _refused(result, 2, "The plan is missing.", "ptqd-export init")


def test_traceback_only_where_asked_for(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--debug", "build", "--plan", str(tmp_path / "plan.json")])
    assert "Traceback" in result.stderr
    assert result.exit_code == 2
