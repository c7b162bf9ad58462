"""Networks in pieces: the same to the last bit, whatever the network, the precision and the batch, and their weights stored once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import FileRecord
from engines.chain.noise import NoiseSource
from engines.errors import PtqdError
from engines.host.files import sha256
from engines.networks.engine_bank import EngineBank
from ptqd_export.stages.finish.pieces import check_pieces

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

BUILDS = {
    "class_build": {"embedding_0": ["class_labels", "timestep"]},
    "cross_build": {"embedding_0": ["encoder_hidden_states"], "embedding_1": ["timestep"]},
}
"""By build, the inputs that each embedding of its network depends on."""


@pytest.fixture(params=BUILDS)
def built(request: pytest.FixtureRequest) -> tuple[Built, dict[str, list[str]]]:
    build: Built = request.getfixturevalue(request.param)
    return build, BUILDS[request.param]


def pieces_of(built: Built, precision: str) -> dict[str, onnx.ModelProto]:
    """By name, without their weights."""
    record = Bundle.open(built.folder).manifest.precisions[precision].pieces
    assert record is not None
    files = {"body": record.body, **record.embeddings}
    return {name: onnx.load(built.folder / file, load_external_data=False) for name, file in files.items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_pieces_give_what_the_whole_gives_to_the_last_bit(built: tuple[Built, dict[str, list[str]]], batch: int) -> None:
    bundle = Bundle.open(built[0].folder)
    x = np.random.default_rng(batch).normal(size=(batch, *bundle.manifest.model.sample_shape)).astype(np.float32)
    rows = np.arange(batch)[::-1] % 3
    for precision, record in bundle.manifest.precisions.items():
        assert record.pieces is not None
        whole, pieces = (EngineBank(bundle, 2.0, batch=batch, whole=whole)[precision] for whole in (True, False))
        assert not whole.embeddings
        assert pieces.embeddings
        for timestep in (0.0, 333.25, 999.0):
            np.testing.assert_array_equal(pieces(x, timestep, rows), whole(x, timestep, rows))


def test_an_embedding_is_of_all_that_depends_on_the_same_inputs(built: tuple[Built, dict[str, list[str]]]) -> None:
    build, depends = built
    for precision in ("fp32", "w8a8", "w4a8"):
        pieces = pieces_of(build, precision)
        assert {name: sorted(value.name for value in graph.graph.input) for name, graph in pieces.items() if name != "body"} == depends
        assert [value.name for value in pieces["body"].graph.input] == ["sample", *depends]


def test_weights_of_pieces_are_those_of_the_whole_and_each_is_in_one_piece(built: tuple[Built, dict[str, list[str]]]) -> None:
    build, _ = built
    for precision in ("fp32", "w8a8", "w4a8"):
        whole = onnx.load(build.graph(precision), load_external_data=False)
        places = {place(tensor) for tensor in whole.graph.initializer if tensor.external_data}
        found = [
            place(tensor) for graph in pieces_of(build, precision).values() for tensor in graph.graph.initializer if tensor.external_data
        ]
        assert set(found) == places
        weights = [found_place for found_place in found if int(found_place[2]) > 256]
        assert len(set(weights)) == len(weights) > 10


def place(tensor: onnx.TensorProto) -> tuple[str, str, str]:
    """Where the values of a tensor lie: file, offset, length."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], entries["offset"], entries["length"]


def test_networks_for_tensorrt_stay_whole(class_trt_build: Built) -> None:
    assert [record.pieces for record in Bundle.open(class_trt_build.folder).manifest.precisions.values()] == [None] * 4
    assert not [*class_trt_build.folder.glob("graphs/*/*.body.onnx")]


def test_pieces_that_give_something_else_are_told(class_build: Built, tmp_path: Path) -> None:
    shutil.copytree(class_build.folder / "graphs", tmp_path / "graphs")
    manifest = Bundle.open(class_build.folder).manifest
    noise = NoiseSource(1, manifest.model.sample_shape)
    check_pieces(Bundle(tmp_path, manifest), noise)
    record = manifest.precisions["w4a8"].pieces
    assert record is not None
    name = record.embeddings["embedding_0"]
    graph = onnx.load(tmp_path / name, load_external_data=False)
    graph.graph.node[-1].output[0] = "right"
    graph.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["embedding_0"]))
    onnx.save(graph, tmp_path / name)
    files = {**manifest.files, name: FileRecord(sha256=sha256(tmp_path / name), bytes=(tmp_path / name).stat().st_size)}
    with pytest.raises(
        PtqdError, match=r"(?s)network of w4a8 gives different outputs in pieces.*differ by up to.*identical outputs, bit for bit"
    ):
        check_pieces(Bundle(tmp_path, manifest.model_copy(update={"files": files})), noise)
