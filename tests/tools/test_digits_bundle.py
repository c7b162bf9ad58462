"""The digits bundle: really small on disk, and one sample number is one image, whatever the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto
from safetensors import safe_open

from engines.arrays import Float32, Float64, Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, batches
from engines.cli import main
from engines.untrusted.external_data import graph_files
from tools.digits import data

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

WEIGHTS = Path(data.__file__).parent / "model" / "unet" / "diffusion_pytorch_model.safetensors"
CONTAINERS = {TensorProto.INT8: 8, TensorProto.INT4: 4}
SAMPLES = 15  # batches of 7 leave one over, which goes through the networks alone
SECOND_HALF = 8
SEED = 1

Sampler = Callable[..., Float32]


# Size on disk


@pytest.mark.parametrize(("precision", "ratio"), [("w8a8", 0.35), ("w4a8", 0.25)])
def test_graph_is_a_fraction_of_the_float_one(digits: Digits, precision: str, ratio: float) -> None:
    assert _bytes(digits.graph(precision)) <= ratio * _bytes(digits.graph("fp32"))


def test_float_graph_holds_every_weight_in_four_bytes(digits: Digits) -> None:
    weights = sum(math.prod(shape) for shape in _trained_shapes().values())
    assert 4 * weights < _bytes(digits.graph("fp32")) < 4.2 * weights


def _bytes(graph: Path) -> int:
    """Weights beside it included."""
    return sum(file.stat().st_size for file in graph_files(graph))


@pytest.mark.parametrize("precision", ["w8a8", "w4a8"])
def test_integer_weights_take_exactly_their_bits(digits: Digits, precision: str) -> None:
    initializers = {tensor.name: tensor for tensor in onnx.load(digits.graph(precision)).graph.initializer}
    shapes, layers = _trained_shapes(), digits.statistics(precision)["layers"]
    assert {layer["name"] for layer in layers} == set(shapes)
    assert {layer["weight_bits"] for layer in layers if layer["role"] == "inner"} == {int(precision[1])}
    for layer in layers:
        weight = initializers[f"{layer['name']}.weight.int"]
        assert math.prod(weight.dims) == math.prod(shapes[layer["name"]])
        assert CONTAINERS[weight.data_type] == layer["weight_bits"]
        assert len(weight.raw_data) == math.prod(weight.dims) * layer["weight_bits"] / 8
        assert f"{layer['name']}.weight" not in initializers


def _trained_shapes() -> dict[str, list[int]]:
    """Shapes of the checkpoint's convolution and linear weights, by layer."""
    with safe_open(WEIGHTS, framework="numpy") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    weights = {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) > 1}
    return {name: shape for name, shape in weights.items() if name != "class_embedding"}


# One number, one image


def _drawn_rows(numbers: Int64) -> Int64:
    """The class of each number, drawn on its own."""
    return np.array([NoiseSource(SEED, (1,)).row(np.array([n]), 10)[0] for n in numbers])


@pytest.fixture
def sample(digits: Digits, tmp_path: Path) -> Sampler:
    """Samples of `ptqd-run sample`; by default all of them, with classes drawn from the seed."""

    def run(precision: str, *, first: int = 0, num: int = SAMPLES, batch_size: int = SAMPLES) -> Float32:
        options = {"num": num, "seed": SEED, "first": first, "batch-size": batch_size, "precision": precision, "format": "npz"}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = CliRunner().invoke(main, ["sample", str(digits.folder), *arguments, "--output", str(tmp_path), "--overwrite"])
        assert done.exit_code == 0, done.output
        with np.load(tmp_path / "samples.npz") as archive:
            np.testing.assert_array_equal(archive["indices"], first + np.arange(num))
            np.testing.assert_array_equal(archive["rows"], _drawn_rows(archive["indices"]))
            samples: Float32 = archive["samples"]
        assert samples.dtype == np.float32
        assert samples.shape == (num, 1, 16, 16)
        return samples

    return run


def test_noise_is_bit_equal_whatever_the_batch(digits: Digits) -> None:
    """With networks that answer zero, a sample is its noise and nothing else."""
    bundle = Bundle.open(digits.folder)
    zero = {name: lambda x, _timestep, _rows: np.zeros((2, *x.shape), np.float32) for name in bundle.manifest.precisions}
    chain = Chain(bundle.schedule(), zero)
    noise, numbers = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(64)
    whole = chain.sample(noise, numbers, numbers)
    pieces = np.concatenate([chain.sample(noise, piece, piece) for piece in batches(numbers, 7)])
    assert np.unique(whole.reshape(64, -1), axis=0).shape == (64, 256)
    np.testing.assert_array_equal(pieces, whole)
    np.testing.assert_array_equal(chain.sample(noise, numbers[32:], numbers[32:]), whole[32:])


def test_float_image_of_a_number_is_the_same_whatever_the_batch(sample: Sampler) -> None:
    whole = sample("fp32")
    np.testing.assert_allclose(sample("fp32", batch_size=7), whole, rtol=0, atol=1e-4)
    np.testing.assert_allclose(sample("fp32", first=SECOND_HALF, num=SAMPLES - SECOND_HALF), whole[SECOND_HALF:], rtol=0, atol=1e-4)
    assert _psnr(whole[1:], whole[:-1]).max() < 30, "different numbers are different images"


@pytest.mark.parametrize("precision", ["auto", "w8a8", "w4a8"])
def test_quantized_image_of_a_number_is_nearly_the_same_whatever_the_batch(sample: Sampler, precision: str) -> None:
    """Not to the bit: a kernel that sums in another order can move a value near a rounding tie into the next bin."""
    whole = sample(precision)
    second_half = sample(precision, first=SECOND_HALF, num=SAMPLES - SECOND_HALF)
    for found, expected in ((sample(precision, batch_size=7), whole), (second_half, whole[SECOND_HALF:])):
        psnr = _psnr(found, expected)
        assert psnr.mean() >= 40
        assert psnr.min() >= 35


def _psnr(samples: Float32, reference: Float32) -> Float64:
    """[N] dB, the peak being 2; images that agree better than 100 dB count as 100."""
    errors: Float64 = np.square(samples.clip(-1, 1) - reference.clip(-1, 1), dtype=np.float64).mean(axis=(1, 2, 3))
    return np.asarray(10 * np.log10(4 / np.maximum(errors, 4e-10)))
