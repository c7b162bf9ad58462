"""The committed unconditional model and its classifier are what their documents say, and good enough to prove something on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import load_file

from engines.arrays import Float32, Float64
from ptqd_export.plan import load_plan
from tools.coloured import data
from tools.coloured.data import Coloured, coloured
from tools.digits.data import split
from tools.training.recognise import CLASSIFIERS, confidence, seen
from tools.training.training import sample

MODEL = Path(data.__file__).with_name("model")
WEIGHTS = MODEL / "unet" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def training_log() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(MODEL.with_name("training_log.json").read_text())
    return content


@pytest.fixture(scope="module")
def pipeline() -> DDPMPipeline:
    return DDPMPipeline.from_pretrained(MODEL, local_files_only=True, use_safetensors=True)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return onnxruntime.InferenceSession(CLASSIFIERS[3, 32, 32], providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def held_out() -> Coloured:
    """Images of handwriting that neither the model nor the classifier was trained on."""
    return coloured(1000, torch.Generator().manual_seed(2), split()[1])


def mean_colours(images: Float32) -> Float64:
    return np.asarray(images.mean(axis=(2, 3), dtype=np.float64))


def test_model_folder_is_small_and_holds_no_pickles() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 8e6


def test_model_is_unconditional_and_in_colour(pipeline: DDPMPipeline, training_log: dict[str, Any]) -> None:
    stored, loaded = load_file(WEIGHTS), pipeline.unet.state_dict()
    assert isinstance(pipeline.unet, UNet2DModel)
    assert all(torch.equal(stored[name], loaded[name]) for name in loaded)
    assert sum(tensor.numel() for tensor in stored.values()) == training_log["parameters"]
    config = pipeline.unet.config
    assert (config.in_channels, config.out_channels, config.sample_size) == (3, 3, 32)
    assert config.num_class_embeds is None
    assert (pipeline.scheduler.config.prediction_type, pipeline.scheduler.config.clip_sample) == ("epsilon", False)


def test_training_log_holds_the_figures_of_the_training(training_log: dict[str, Any]) -> None:
    losses = [row["loss"] for row in training_log["log"]]
    assert len(losses) >= training_log["minutes"] - 1
    assert losses[-1] < 0.2 * losses[0]
    assert training_log["steps"] == training_log["log"][-1]["step"]
    assert training_log["samples"] == 1000
    assert 0.65 * training_log["confidence_in_real_images"] < training_log["confidence"] < training_log["confidence_in_real_images"]
    assert 0 < training_log["frechet_distance"] < 4


def test_plan_is_of_this_model_without_guidance() -> None:
    written = load_plan(MODEL.with_name("plan.json"))
    assert written.model_path == MODEL
    sampler = written.plan.sampler
    assert (sampler.name, sampler.steps, sampler.eta, sampler.guidance) == ("ddim", 20, 1.0, 1.0)


@pytest.mark.slow
def test_samples_look_like_coloured_digits(pipeline: DDPMPipeline, held_out: Coloured) -> None:
    """Their mean colours are spread as the real ones; of their shapes, many of them no digit, the classifier is over half as sure."""
    torch.manual_seed(0)
    unet, real = pipeline.unet.eval(), held_out.images.numpy()
    samples = sample(lambda x, timestep: unet(x, timestep).sample, pipeline.scheduler, (96, 3, 32, 32)).numpy()
    assert confidence(seen(samples)[0]) > 0.6 * confidence(seen(real)[0])
    of_samples, of_real = mean_colours(samples), mean_colours(real)
    five_errors = 5 * of_real.std(axis=0) / np.sqrt(len(samples))
    assert (np.abs(of_samples.mean(axis=0) - of_real.mean(axis=0)) < five_errors).all()
    assert of_samples.std(axis=0) == pytest.approx(of_real.std(axis=0), rel=0.35)


def test_classifier_has_the_outputs_that_its_trainer_documents(classifier: Any) -> None:
    (images,) = classifier.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(float)", [3, 32, 32])
    outputs = classifier.run(["logits", "features", "spatial"], {"images": np.zeros((5, 3, 32, 32), dtype=np.float32)})
    assert [output.shape for output in outputs] == [(5, 10), (5, 64), (5, 32, 4, 4)]


def test_classifier_knows_the_digits_that_it_was_not_trained_on(classifier: Any, held_out: Coloured) -> None:
    logits = classifier.run(["logits"], {"images": held_out.images.numpy()})[0]
    assert np.count_nonzero(logits.argmax(axis=1) == held_out.labels.numpy()) >= 0.97 * len(logits)


def test_confidence_is_the_mean_of_the_largest_probabilities(classifier: Any, held_out: Coloured) -> None:
    images = held_out.images[:50]
    logits, features = (torch.from_numpy(each) for each in classifier.run(["logits", "features"], {"images": images.numpy()}))
    seen_logits, seen_features = seen(images.numpy())
    assert confidence(seen_logits) == pytest.approx(logits.softmax(dim=1).amax(dim=1).mean().item(), rel=1e-5)
    np.testing.assert_allclose(seen_features, features)


def test_mean_colour_is_a_linear_function_of_the_features(classifier: Any, held_out: Coloured) -> None:
    """A Frechet distance of these features therefore sees a drift of the mean colour: least squares on one half explains the other."""
    images = held_out.images.numpy()
    features = classifier.run(["features"], {"images": images})[0].astype(np.float64)
    design, colours = np.c_[features, np.ones(len(features))], mean_colours(images)
    fitted = design[500:] @ np.linalg.lstsq(design[:500], colours[:500])[0]
    unexplained = np.square(colours[500:] - fitted).sum(axis=0) / np.square(colours[500:] - colours[500:].mean(axis=0)).sum(axis=0)
    assert (1 - unexplained > 0.9).all()
