"""The Inception network: its names, its arithmetic as ONNX, and what is refused. The weights are random, under the published names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

from engines.apps.evaluate.extractor import Extractor
from engines.arrays import Float64
from ptqd_export.cli import main
from ptqd_export.commands.extractors.inception_network import FidInception
from tests.shared import shared_folder


@pytest.fixture(scope="module")
def network() -> FidInception:
    torch.manual_seed(0)
    made = FidInception().eval().requires_grad_(False)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                nn.init.normal_(values, std=0.1)  # type: ignore[arg-type]  # both are tensors
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]  # both are tensors
    return made


def weights(network: nn.Module) -> dict[str, Tensor]:
    """The file of pytorch-fid lacks the counters of batch normalization."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def exported(network: FidInception, tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    def fill(folder: Path) -> None:
        torch.save(weights(network), folder / "weights.pth", _use_new_zipfile_serialization=False)
        done = export(folder / "weights.pth", folder / "inception.onnx")
        assert done.exit_code == 0, done.stderr

    return Extractor(shared_folder(tmp_path_factory, "inception", fill) / "inception.onnx", threads=1)


def export(weights_file: Path, output: Path) -> Result:
    return CliRunner().invoke(main, ["extractor", "inception", "--weights", str(weights_file), "-o", str(output)])


def tensorflow_resize(images: Float64, side: int) -> Float64:
    """TensorFlow 1's resize_bilinear (align_corners and half_pixel_centers false): output pixel i lies at i * size / side."""
    for axis in (2, 3):
        size = images.shape[axis]
        position = np.arange(side) * (size / side)
        low = np.floor(position).astype(int)
        share = (position - low).reshape([-1 if one == axis else 1 for one in range(4)])
        images = images.take(low, axis) * (1 - share) + images.take(np.minimum(low + 1, size - 1), axis) * share
    return images


@pytest.mark.slow
@pytest.mark.parametrize(("count", "channels", "side"), [(3, 3, 32), (2, 3, 256), (1, 1, 400)])
def test_the_graph_computes_what_torch_computes_on_levels(
    network: FidInception, exported: Extractor, count: int, channels: int, side: int
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (count, channels, side, side)).astype(np.float64)
    found = exported((levels / 127.5 - 1).astype(np.float32))
    resized = np.broadcast_to(tensorflow_resize(levels, 299), (count, 3, 299, 299))
    features, spatial, logits = network(torch.from_numpy((resized / 128 - 1).astype(np.float32)))
    assert features.std(dim=1).min() > 0.1
    assert found.spatial is not None
    assert found.logits is not None
    np.testing.assert_allclose(found.features, features, atol=1e-4 * features.abs().max().item())
    np.testing.assert_allclose(found.logits, logits, atol=1e-4 * logits.abs().max().item())
    np.testing.assert_allclose(found.spatial, spatial.permute(0, 2, 3, 1).flatten(1), atol=1e-4 * spatial.abs().max().item())
    assert (found.features.shape[1], found.spatial.shape[1], found.logits.shape[1]) == (2048, 2023, 1008)


@pytest.mark.slow
def test_samples_count_as_the_levels_that_a_picture_file_holds(exported: Extractor) -> None:
    levels = np.random.default_rng(1).integers(1, 255, (1, 3, 8, 8)).astype(np.float32)
    exact, between = (exported((levels + shift) / np.float32(127.5) - 1).features for shift in (0, 0.4))
    np.testing.assert_allclose(between, exact, rtol=1e-5)


@pytest.mark.slow
def test_the_graph_says_its_name(exported: Extractor) -> None:
    assert exported.name == "fid-inception"


SHAPES: Mapping[str, tuple[int, ...]] = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3), "Conv2d_4a_3x3.bn.running_var": (192,), "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5c.branch_pool.conv.weight": (64, 256, 1, 1), "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6b.branch7x7_3.conv.weight": (192, 128, 7, 1), "Mixed_6c.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7), "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3), "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1), "fc.weight": (1008, 2048), "fc.bias": (1008,),
}  # fmt: skip
"""Some of the published file's tensors."""


def test_names_and_shapes_are_those_of_the_published_weights(network: FidInception) -> None:
    """94 convolutions with five tensors each and the classifier; 23.85 million parameters."""
    own = weights(network)
    assert len(own) == 94 * 5 + 2
    assert {name: tuple(own[name].shape) for name in SHAPES} == SHAPES
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_850_960


def test_weights_of_another_network_are_one_message(network: FidInception, tmp_path: Path) -> None:
    state = weights(network)
    state["AuxLogits.fc.weight"] = torch.zeros(1000, 768)
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 2048), torch.zeros(1000)
    del state["Mixed_6b.branch1x1.bn.bias"]
    save_file(state, tmp_path / "torchvision.safetensors")
    done = export(tmp_path / "torchvision.safetensors", tmp_path / "out.onnx")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: The weights are not of this network.")
    for words in (
        "missing Mixed_6b.branch1x1.bn.bias;",
        "unexpected AuxLogits.fc.weight;",
        "of shape fc.weight [1000, 2048], not [1008, 2048]",
    ):
        assert words in done.stderr
    assert not (tmp_path / "out.onnx").exists()


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


@pytest.mark.parametrize("content", [Malicious(), [1, 2], {"a": 3}])
def test_files_that_hold_anything_but_tensors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object) -> None:
    torch.save(content, tmp_path / "weights.pth")
    done = export(tmp_path / "weights.pth", tmp_path / "out.onnx")
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("error: The weights ")
    assert "code ran" not in done.output + capsys.readouterr().out


def test_files_that_are_missing_or_damaged_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    assert export(tmp_path / "none.pth", tmp_path / "out.onnx").stderr.startswith("error: There are no weights.")
    for name in ("cut.pth", "cut.safetensors"):
        assert export(tmp_path / name, tmp_path / "out.onnx").stderr.startswith("error: The weights cannot be read.")
