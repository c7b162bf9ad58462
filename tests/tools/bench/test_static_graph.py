"""Graphs of ONNX Runtime's own tool."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from engines.networks.engine_bank import EngineBank
from tools.bench.case import Case
from tools.bench.contestants import STATIC, STATIC_WEIGHTED, static
from tools.bench.static_graph import make_static_graphs
from tools.bench.turns import snr_db

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.fixture(scope="module")
def case(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("static")
    shutil.copytree(tiny.folder, folder / "bundle")
    made = Case(folder, 4)
    make_static_graphs(made)
    return made


def test_the_second_graph_leaves_alone_what_is_no_product(case: Case) -> None:
    whole, weighted = (Counter(node.op_type for node in onnx.load(case.folder / name).graph.node) for name in (STATIC, STATIC_WEIGHTED))
    assert whole["Conv"] == weighted["Conv"] == 2
    assert whole["QuantizeLinear"] > weighted["QuantizeLinear"] >= 4


def test_weights_are_integers_a_channel_each(case: Case) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load(case.folder / STATIC_WEIGHTED).graph.initializer}
    assert tensors["first_quantized"].data_type == onnx.TensorProto.INT8
    assert list(tensors["first_scale"].dims) == [4]


def test_it_computes_nearly_what_full_precision_computes(case: Case) -> None:
    bank = EngineBank(case.bundle, 1.5, batch=4)
    visited = case.visited(bank)
    reference = np.stack(
        [bank["fp32"](x, t, visited.rows).reshape(8, 1, 8, 8) for x, t in zip(visited.states, visited.timesteps, strict=True)]
    )
    for name in (STATIC, STATIC_WEIGHTED):
        assert 25 < snr_db(reference, static(case, name).outputs(visited)) < 60
