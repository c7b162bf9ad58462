"""Samples that start from images: against chains computed here in float64, whatever the batch, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import engines
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import UsageError
from engines.networks.encoder import open_encoder
from engines.samplers.levels.alphas import alpha_bar
from tests.conftest import CLASSES, MIXTURE, NOISE_SCHEDULE, SIZE, STEPS, TinyBundle
from tests.engines.ptqd_run import record, sample, sampled, states

if TYPE_CHECKING:
    from engines.arrays import Float32

Array = NDArray[Any]

PLAIN = ("--precision", "fp32", "--correction", "off", "--classes", "1,0,2")
STRIDE = 1000 // STEPS
NUM = 3


def _png(path: Path, pixels: Array) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def _pixels(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return _png(tmp_path / "image.png", _pixels(0, SIZE, SIZE))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three images, whose names are not in the order in which they are written."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (2, 0, 1):
        _png(folder / f"{number}.png", _pixels(number, SIZE, SIZE))
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """White on the right, gray just below and at the limit on the left."""
    pixels = np.full((SIZE, SIZE), 127, dtype=np.uint8)
    pixels[:, SIZE // 2 :], pixels[0, 0] = 255, 128
    return _png(tmp_path / "mask.png", pixels)


def _expected(
    bundle: TinyBundle, clean: Array, strength: float, mask: Array | None = None, *, from_noise: bool = False, seed: int = 5
) -> Array:
    """DDIM at eta 1 with guidance (arXiv 2010.02502, equation 12) from the noised images; the mask as in diffusers."""
    noise, samples = NoiseSource(seed, clean.shape[1:]), np.arange(NUM)
    network, labels, null = bundle.networks["fp32"], np.array([1, 0, 2]), np.full(NUM, CLASSES)
    timesteps = [STRIDE * i for i in reversed(range(STEPS))][STEPS - int(STEPS * strength) :]
    a = np.append(alpha_bar(NOISE_SCHEDULE)[timesteps], 1.0)
    eps = noise.start(samples).astype(np.float64)
    x = eps if from_noise else np.sqrt(a[0]) * clean + np.sqrt(1 - a[0]) * eps
    for i, timestep in enumerate(timesteps):
        of_class, of_null = network(x, timestep, labels), network(x, timestep, null)
        out = of_null + 1.5 * (of_class - of_null)
        x0, sigma = (x - np.sqrt(1 - a[i]) * out) / np.sqrt(a[i]), np.sqrt((1 - a[i + 1]) / (1 - a[i]) * (1 - a[i] / a[i + 1]))
        x = np.sqrt(a[i + 1]) * x0 + np.sqrt(1 - a[i + 1] - sigma**2) * out
        if sigma > 0:
            x = x + sigma * noise.step(i, samples)
        if mask is not None:
            x = (1 - mask) * (np.sqrt(a[i + 1]) * clean + np.sqrt(1 - a[i + 1]) * eps) + mask * x
    return x


def _state(pixels: Array) -> Array:
    return np.asarray(pixels / 255 * 2 - 1)[None, None]


WHITE = np.zeros((1, 1, SIZE, SIZE))
WHITE[..., SIZE // 2 :], WHITE[..., 0, 0] = 1, 1


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_chain_starts_from_the_noised_image(tiny: TinyBundle, tmp_path: Path, image: Path, strength: float) -> None:
    found = states(tiny, tmp_path / "out", *PLAIN, "--image", image, "--strength", strength, num=NUM)
    expected = _expected(tiny, np.repeat(_state(_pixels(0, SIZE, SIZE)), NUM, 0), strength)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert np.abs(found - states(tiny, tmp_path / "noise", *PLAIN, num=NUM)).max() > 0.1


def test_every_sample_takes_the_image_of_its_place(tiny: TinyBundle, tmp_path: Path, images: Path) -> None:
    found = states(tiny, tmp_path / "out", *PLAIN, "--image", images, "--strength", 0.5, "--batch-size", 2, num=NUM)
    expected = _expected(tiny, np.concatenate([_state(_pixels(n, SIZE, SIZE)) for n in range(NUM)]), 0.5)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_what_the_mask_keeps_is_the_image(tiny: TinyBundle, tmp_path: Path, image: Path, mask: Path, strength: float) -> None:
    found = states(tiny, tmp_path / "out", *PLAIN, "--image", image, "--strength", strength, "--mask", mask, num=NUM)
    clean = np.repeat(_state(_pixels(0, SIZE, SIZE)), NUM, 0)
    expected = _expected(tiny, clean, strength, WHITE, from_noise=strength == 1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    kept = np.broadcast_to(WHITE == 0, found.shape)
    np.testing.assert_array_equal(found[kept], clean.astype(np.float32)[kept])
    assert np.abs(found - clean)[~kept].max() > 0.1


def test_samples_are_the_same_in_any_batch(tiny: TinyBundle, tmp_path: Path, images: Path, mask: Path) -> None:
    options = ("--image", images, "--strength", 0.75, "--mask", mask)
    alone, together = (states(tiny, tmp_path / str(size), *options, "--batch-size", size, num=NUM) for size in (1, 3))
    np.testing.assert_allclose(alone, together, atol=2e-6)


def test_record_tells_what_the_samples_started_from(tiny: TinyBundle, tmp_path: Path, images: Path, mask: Path) -> None:
    found = record(sampled(tiny, tmp_path / "out", "--image", images, "--mask", mask, num=NUM))
    digests = [hashlib.sha256((images / f"{n}.png").read_bytes()).hexdigest() for n in range(NUM)]
    assert (found["strength"], found["images"], found["mask"]) == (0.8, digests, hashlib.sha256(mask.read_bytes()).hexdigest())
    assert sum(found["precision_steps"].values()) == 3
    plain = record(sampled(tiny, tmp_path / "noise", num=NUM))
    assert (plain["strength"], plain["images"], plain["mask"]) == (None, None, None)


def test_python_takes_files_and_pixels_alike(tiny: TinyBundle, images: Path, mask: Path) -> None:
    bundle = engines.open_bundle(tiny.folder)
    asked: dict[str, Any] = {"num": NUM, "seed": 5, "strength": 0.5, "latents": True}
    of_files = bundle.sample(image=images, mask=mask, **asked)
    pixels = np.stack([_pixels(n, SIZE, SIZE) for n in range(NUM)])[..., None]
    np.testing.assert_array_equal(bundle.sample(image=pixels, mask=WHITE[0, 0] == 1, **asked), of_files)
    steps = [*bundle.chain(NUM, seed=5, image=images, mask=mask, strength=0.5)]
    assert [(step.index, step.steps) for step in steps] == [(0, 2), (1, 2)]
    np.testing.assert_array_equal(steps[-1].state, of_files)


def _with_encoder(bundle: TinyBundle, tmp_path: Path) -> TinyBundle:
    """Adds the encoder `image -> image x mixture` to a copy of `tiny_decoded`."""
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "encoded"))
    sample_input = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, SIZE, SIZE])
    weights = numpy_helper.from_array(MIXTURE.reshape(4, 1, 1, 1), "mixture")
    graph = helper.make_graph([helper.make_node("Conv", ["sample", "mixture"], ["out"])], "encoder", [sample_input], [out], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / "encoder.onnx")
    encoded = replace(bundle, folder=folder)
    encoded.edit_json("manifest.json", lambda manifest: manifest["model"].update(encoder={"file": "encoder.onnx"}))
    encoded.rehash("encoder.onnx")
    return encoded


def test_images_of_latent_models_are_encoded(tiny_decoded: TinyBundle, tmp_path: Path, images: Path, mask: Path) -> None:
    bundle = _with_encoder(tiny_decoded, tmp_path)
    found = states(bundle, tmp_path / "out", *PLAIN, "--image", images, "--strength", 0.5, "--mask", mask, num=NUM)
    pictures = np.concatenate([_state(_pixels(n, SIZE, SIZE)) for n in range(NUM)])
    clean: Float32 = open_encoder(Bundle.open(bundle.folder), "target")(pictures.astype(np.float32))
    np.testing.assert_allclose(clean, pictures * MIXTURE.reshape(1, 4, 1, 1), atol=1e-6)
    expected = _expected(bundle, clean, 0.5, WHITE)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_latent_bundle_without_an_encoder_is_refused(tiny_decoded: TinyBundle, tmp_path: Path, image: Path) -> None:
    result = sample(tiny_decoded, tmp_path / "out", "--image", image)
    assert result.exit_code == 2
    assert "it has no encoder" in result.stderr
    assert "set model.encoder to true" in result.stderr
    assert not (tmp_path / "out").exists()


REFUSED: list[tuple[list[str], str]] = [
    (["--image", "small.png"], "8 x 8 pixels, as the model's pictures have"),
    (["--image", "colour.png"], "colours that the model has not"),
    (["--image", "image.png", "--mask", "small.png"], "The mask has the wrong size"),
    (["--image", "image.png", "--strength", "0"], "strength is out of range"),
    (["--image", "image.png", "--strength", "1.5"], "strength is out of range"),
    (["--image", "image.png", "--strength", "0.2"], "leaves no step of the chain"),
    (["--image", "two"], "2 images for 3 samples"),
    (["--image", "empty"], "No picture was found"),
    (["--image", "absent.png"], "No picture was found"),
    (["--image", "text.png"], "A picture cannot be read"),
    (["--strength", "0.5"], "A strength needs an image"),
    (["--mask", "image.png"], "A mask needs an image"),
    (["--image", "image.png", "--ray", "local"], "A cluster cannot sample from images"),
    (["--image", "image.png", "--mask", "image.png", "--update", "device"], "The device cannot keep a part of an image"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _png(tmp_path / "image.png", _pixels(0, SIZE, SIZE))
    _png(tmp_path / "small.png", _pixels(0, SIZE, SIZE // 2))
    _png(tmp_path / "colour.png", _pixels(0, SIZE, SIZE, 3))
    (tmp_path / "text.png").write_text("not a picture")
    for folder, count in (("two", 2), ("empty", 0)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            _png(tmp_path / folder / f"{number}.png", _pixels(number, SIZE, SIZE))
    result = sample(tiny, tmp_path / "out", *arguments, num=NUM)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_sampler_that_cannot_start_late_is_refused_by_name(own_tiny: TinyBundle, tmp_path: Path, image: Path) -> None:
    def to_plms(schedule: dict[str, Any]) -> None:
        schedule["sampler"] |= {"name": "plms", "steps": STEPS - 1, "eta": 0.0}

    own_tiny.edit_json("schedules/default.json", to_plms)
    own_tiny.rehash("schedules/default.json")
    result = sample(own_tiny, tmp_path / "out", "--image", image, "--strength", 0.7)
    assert result.exit_code == 2
    assert "sampler plms cannot start in the middle" in result.stderr
    assert json.loads((own_tiny.folder / "schedules/default.json").read_text())["sampler"]["name"] == "plms"


@pytest.mark.parametrize("pixels", [_pixels(0, SIZE, SIZE, 2), _pixels(0, SIZE).astype(np.float32), _pixels(0, 1, SIZE, SIZE, 3)])
def test_pixels_of_another_shape_are_refused(tiny: TinyBundle, pixels: Array) -> None:
    with pytest.raises(UsageError, match="wrong size"):
        engines.open_bundle(tiny.folder).sample(1, image=pixels)


def test_openvino_starts_from_images_too(tiny_decoded: TinyBundle, tmp_path: Path, images: Path, mask: Path) -> None:
    pytest.importorskip("openvino")
    bundle = _with_encoder(tiny_decoded, tmp_path)
    options = (*PLAIN, "--image", images, "--strength", 0.5, "--mask", mask, "--runtime")
    found, expected = (states(bundle, tmp_path / name, *options, name, num=NUM) for name in ("openvino", "onnxruntime"))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
