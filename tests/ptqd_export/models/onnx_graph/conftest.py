"""Fixtures of graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ptqd_export.models.onnx_graph.onnx_graphs import exported

if TYPE_CHECKING:
    from tests.ptqd_export.models.onnx_graph.onnx_graphs import SmallUNet


@pytest.fixture(scope="session")
def small_graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SmallUNet]:
    """A graph of opset 18 with a free batch, and the network that it was exported from."""
    path = tmp_path_factory.mktemp("graph") / "denoiser.onnx"
    return path, exported(path, opset=18)
