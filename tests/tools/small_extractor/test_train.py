"""The steps after training: whitening, and the graph that ships."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engines.apps.evaluate.extractor import Extractor
from ptqd_export.graph.graph_files import save_graph
from tools.small_extractor.network import SmallExtractor
from tools.small_extractor.pictures import Painter
from tools.small_extractor.train import SIDES, graph_of, whiten


@pytest.mark.slow
def test_whitened_features_of_clean_pictures_have_unit_covariance_in_the_graph_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    extractor, painter = SmallExtractor(), Painter()
    whiten(extractor, painter)
    save_graph(graph_of(extractor), tmp_path / "small.onnx")
    graph = Extractor(tmp_path / "small.onnx", threads=1)
    torch.manual_seed(5)
    features = np.concatenate([graph(painter.clean(300, side).numpy()).features for side in sorted(set(SIDES))])
    assert features.mean(axis=0).std() < 0.1
    assert abs(np.diag(np.cov(features, rowvar=False)).mean() - 1) < 0.1
    gray = np.random.default_rng(0).uniform(-1, 1, (2, 1, 30, 41)).astype(np.float32)
    with torch.no_grad():
        expected = extractor(torch.from_numpy(gray).expand(-1, 3, -1, -1))
    np.testing.assert_allclose(graph(gray).features, expected, rtol=1e-3, atol=1e-3)
