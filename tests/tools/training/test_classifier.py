"""Both classifiers' architecture and their ONNX form."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tools.training import classifier
from tools.training.classifier import Classifier, save_onnx

TOOLS = Path(classifier.__file__).parents[1]


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32)])
def test_outputs_have_the_documented_shapes(channels: int, size: int) -> None:
    logits, features, spatial = Classifier(channels, size, classes=10).eval()(torch.zeros(5, channels, size, size))
    assert (logits.shape, features.shape, spatial.shape) == ((5, 10), (5, 64), (5, 32, 4, 4))
    assert features.min() >= 0


def test_saved_classifier_computes_what_torch_does_at_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(3, 32, classes=10)
    model(torch.randn(64, 3, 32, 32))  # in training: moves the norms' statistics away from their defaults
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of torch's internals
        save_onnx(model, torch.zeros(4, 3, 32, 32), tmp_path / "classifier.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 7):
        images = torch.randn(batch, 3, 32, 32)
        for ours, theirs in zip(session.run(None, {"images": images.numpy()}), model(images), strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "limit"), [("digits", 200_000), ("coloured", 300_000)])
def test_committed_file_is_small_and_tells_nothing_of_the_machine(name: str, limit: int) -> None:
    path = TOOLS / name / "classifier.onnx"
    model = onnx.load(path)
    assert path.stat().st_size < limit
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert model.functions or len(model.graph.node) > 5
    assert b"site-packages" not in path.read_bytes()
