"""A tiny feature extractor, with a reference implementation in numpy and float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.arrays import Float32, Float64

SHAPE = (1, 8, 8)
FEATURES, CLASSES = 4, 5


def weights(shape: tuple[int, int], scale: float) -> Float32:
    return (scale * np.random.default_rng(1).normal(size=shape)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class TinyExtractor:
    """`features = tanh(x W)` and `logits = features V`; `spatial` is every second row and column, in plain and in negated form."""

    W: Float32 = field(default_factory=lambda: weights((64, FEATURES), 1 / 8))
    V: Float32 = field(default_factory=lambda: weights((FEATURES, CLASSES), 2))

    def features(self, images: Float32) -> Float64:
        return np.asarray(np.tanh(images.clip(-1, 1).reshape(len(images), -1).astype(np.float64) @ self.W))

    def logits(self, images: Float32) -> Float64:
        return np.asarray(self.features(images) @ self.V)

    def spatial(self, images: Float32) -> Float64:
        """Spatial features [n, 4 * 4 * 2], channels varying fastest."""
        corners = images.clip(-1, 1)[:, 0, ::2, ::2].astype(np.float64)
        return np.stack([corners, -corners], axis=-1).reshape(len(images), -1)

    def save(
        self,
        path: Path,
        outputs: Sequence[str] = ("logits", "features", "spatial"),
        shape: Sequence[int | str] = ("N", *SHAPE),
        kind: int = TensorProto.FLOAT,
        names: dict[str, str] | None = None,
    ) -> Path:
        """Write the extractor as an ONNX file, optionally with missing or renamed outputs, or an input of another shape or type."""
        names = names or {}
        shapes = {"logits": ["N", CLASSES], "features": ["N", self.W.shape[1]], "spatial": ["N", 2, 4, 4]}
        nodes = [
            helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["x"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "W"], ["projected"]),
            helper.make_node("Tanh", ["projected"], ["tanh"]),
            helper.make_node("Identity", ["tanh"], ["features"]),
            helper.make_node("MatMul", ["tanh", "V"], ["logits"]),
        ]
        if "spatial" in outputs:
            nodes.append(helper.make_node("Conv", ["x", "corner"], ["spatial"], strides=[2, 2]))
        nodes += [helper.make_node("Identity", [name], [new]) for name, new in names.items()]
        corner = np.zeros((2, 1, 2, 2), np.float32)
        corner[:, 0, 0, 0] = 1, -1
        initializers = [numpy_helper.from_array(value, name) for name, value in (("W", self.W), ("V", self.V), ("corner", corner))]
        graph = helper.make_graph(
            nodes,
            "extractor",
            [helper.make_tensor_value_info("images", kind, shape)],
            [helper.make_tensor_value_info(names.get(name, name), TensorProto.FLOAT, shapes[name]) for name in outputs],
            initializers,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
        return path


@pytest.fixture(scope="session")
def network() -> TinyExtractor:
    return TinyExtractor()


@pytest.fixture(scope="session")
def extractor_file(network: TinyExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of an extractor with all three outputs."""
    return network.save(tmp_path_factory.mktemp("extractor") / "extractor.onnx")
