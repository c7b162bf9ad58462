"""The committed model and classifier are what their documents say, and good enough to prove something on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file

from tools.digits import data
from tools.training.recognise import CLASSIFIERS, recognised

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

MODEL = Path(data.__file__).with_name("model")
WEIGHTS = MODEL / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def training_log() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MODEL.with_name("training_log.json").read_text())
    return content


@pytest.fixture(scope="module")
def classifier() -> Any:
    return onnxruntime.InferenceSession(CLASSIFIERS[1, 16, 16], providers=["CPUExecutionProvider"])


def test_model_folder_is_small_and_holds_no_pickles() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 8e6


def test_diffusers_loads_the_model_folder(training_log: dict[str, Any]) -> None:
    pipeline = DDPMPipeline.from_pretrained(MODEL, local_files_only=True, use_safetensors=True)
    stored, loaded = load_file(WEIGHTS), pipeline.unet.state_dict()
    assert isinstance(pipeline.unet, UNet2DModel)
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    assert sum(tensor.numel() for tensor in stored.values()) == training_log["parameters"]
    assert pipeline.unet.config.num_class_embeds == data.CLASSES + 1
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_training_log_holds_the_figures_of_the_training(training_log: dict[str, Any]) -> None:
    losses = [row["loss"] for row in training_log["log"]]
    assert len(losses) >= training_log["minutes"] - 1
    assert losses[-1] < 0.2 * losses[0]
    assert training_log["steps"] == training_log["log"][-1]["step"]
    assert (training_log["samples"], training_log["guidance"]) == (1000, 1.5)
    assert 0.95 <= training_log["samples_recognised"] <= 1


def test_split_holds_out_a_fifth_of_every_class() -> None:
    _, labels = data.digits()
    fit, held_out = data.split()
    np.testing.assert_array_equal(np.sort(np.concatenate([fit, held_out])), np.arange(1797))
    of_all, of_held_out = np.bincount(labels), np.bincount(labels[held_out])
    assert np.abs(of_held_out - 0.2 * of_all).max() <= 1


@pytest.mark.parametrize("batch", [1, 5])
def test_classifier_has_the_outputs_that_its_trainer_documents(classifier: Any, batch: int) -> None:
    (images,) = classifier.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(float)", [1, 16, 16])
    names = [output.name for output in classifier.get_outputs()]
    outputs = classifier.run(None, {"images": np.zeros((batch, 1, 16, 16), dtype=np.float32)})
    shapes = {name: (output.dtype.name, output.shape) for name, output in zip(names, outputs, strict=True)}
    assert shapes == {
        "logits": ("float32", (batch, 10)),
        "features": ("float32", (batch, 64)),
        "spatial": ("float32", (batch, 32, 4, 4)),
    }


def test_classifier_knows_the_images_that_it_was_not_trained_on(classifier: Any) -> None:
    images, labels = (tensor[data.split()[1]].numpy() for tensor in data.digits())
    logits = classifier.run(["logits"], {"images": images})[0]
    accuracy = np.count_nonzero(np.argsort(logits, axis=1)[:, -1] == labels) / len(labels)
    assert accuracy >= 0.97
    assert recognised(images, labels) == pytest.approx(accuracy)
    assert recognised(images, (labels + 1) % 10) <= 0.03


@pytest.mark.slow
def test_guided_samples_in_full_precision_show_the_class_asked_for(digits: Digits) -> None:
    numbers = np.arange(200, dtype=np.int64)
    samples = digits.sample("fp32", seed=1, numbers=numbers, rows=numbers % 10)
    assert recognised(samples, numbers % 10) >= 0.95
