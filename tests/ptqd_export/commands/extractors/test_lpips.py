"""LPIPS against torchmetrics with the same weights, on torchvision's layers written out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as oracle
from click.testing import CliRunner, Result
from torch import Tensor, nn

from engines.apps.evaluate.scorers.lpips_scorer import LpipsScorer
from engines.errors import UsageError
from ptqd_export.cli import main

ROWS = np.zeros(3, dtype=np.int64)


def alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


def vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2, 2)]
        inputs = width or inputs
    return nn.Sequential(*layers)


FEATURES = {"alex": alexnet, "vgg": vgg16}


def write_backbone(name: str, path: Path) -> nn.Sequential:
    """Write random weights as torchvision's file has them, and return the layers."""
    torch.manual_seed(0)
    layers = FEATURES[name]()
    for parameter in layers.parameters():
        nn.init.kaiming_normal_(parameter, nonlinearity="relu") if parameter.ndim > 1 else nn.init.normal_(parameter, std=0.1)
    state: dict[str, Tensor] = {f"features.{key}": value for key, value in layers.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(4, 4)}, path)
    return layers


def published(name: str) -> Path:
    """The weights of the channels that were published with LPIPS, which torchmetrics ships."""
    return Path(oracle.__file__).parent / "lpips_models" / f"{name}.pth"


def export(name: str, backbone: Path, linear: Path, output: Path) -> Result:
    arguments = ["--network", name, "--backbone", str(backbone), "--linear", str(linear), "-o", str(output)]
    return CliRunner().invoke(main, ["extractor", "lpips", *arguments])


@pytest.mark.parametrize("name", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_distances_are_those_of_torchmetrics(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = write_backbone(name, tmp_path / "backbone.pth")
    done = export(name, tmp_path / "backbone.pth", published(name), tmp_path / "lpips.onnx")
    assert done.exit_code == 0, done.stderr
    monkeypatch.setattr(oracle, "_get_tv_model_features", lambda *_: layers)
    network = oracle._LPIPS(net=name, pnet_rand=True)  # type: ignore[arg-type]
    scorer = LpipsScorer(tmp_path / "lpips.onnx")
    assert scorer.extractor == f"lpips-{name}"
    for shape in ((3, 3, 32, 32), (2, 1, 48, 70)):
        images = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
        images[1] = images[0] + 0.3 * images[1]
        colour = torch.from_numpy(images).clamp(-1, 1).expand(-1, -1, 3, -1, -1)
        expected = network(*colour).flatten()
        assert expected.min() > 1e-3
        np.testing.assert_allclose(scorer(images[0], images[1], ROWS), expected, rtol=1e-4)
        assert scorer(images[0], images[0], ROWS).tolist() == [0.0] * shape[0]
    scorer.check((1, 32, 64))
    for refused in ((3, 31, 64), (4, 64, 64), (64,)):
        with pytest.raises(UsageError, match=r"(?s)does not take the samples.*at least 32 pixels"):
            scorer.check(refused)


def test_weights_of_another_network_are_one_message(tmp_path: Path) -> None:
    write_backbone("alex", tmp_path / "backbone.pth")
    done = export("vgg", tmp_path / "backbone.pth", published("vgg"), tmp_path / "lpips.onnx")
    assert (done.exit_code, done.stderr.count("error:")) == (2, 1)
    assert done.stderr.startswith("error: The weights are not of this network.\n")
    assert "missing features.2.weight" in done.stderr
    assert not (tmp_path / "lpips.onnx").exists()
