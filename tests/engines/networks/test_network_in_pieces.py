"""Networks in pieces: the bank opens them, what they give is the network's, and pieces that do not fit are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx.utils import Extractor

from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend, OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.errors import BundleError
from engines.networks.conditioning import class_labels
from engines.networks.engine_bank import EngineBank

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

X = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
ROWS = np.array([2, 0], dtype=np.int64)
BODY, EMBEDDING, WHOLE = (f"graphs/onnxruntime/fp32{part}.onnx" for part in (".body", ".vector", ""))


@pytest.fixture
def pieces(own_tiny: TinyBundle) -> TinyBundle:
    """Full precision is cut at the vector that classes and timestep add up to."""
    cut = Extractor(onnx.shape_inference.infer_shapes(onnx.load(own_tiny.folder / WHOLE)))
    for name, inputs, outputs in ((BODY, ["sample", "vector"], ["out"]), (EMBEDDING, ["timestep", "class_labels"], ["vector"])):
        onnx.save(cut.extract_model(inputs, outputs), own_tiny.folder / name)
        own_tiny.rehash(name)
    describe(own_tiny, BODY, {"vector": EMBEDDING})
    return own_tiny


def describe(bundle: TinyBundle, body: str, embeddings: Mapping[str, str]) -> None:
    record = {"body": body, "embeddings": dict(embeddings)}
    bundle.edit_json("manifest.json", lambda manifest: manifest["precisions"]["fp32"].update(pieces=record))


def bank_of(bundle: TinyBundle, **options: Any) -> EngineBank:
    return EngineBank(Bundle.open(bundle.folder), 1.5, batch=2, **options)


def test_pieces_give_both_branches_of_the_network(pieces: TinyBundle) -> None:
    bank, network = bank_of(pieces), pieces.networks["fp32"]
    assert list(bank["fp32"].embeddings) == ["vector"]
    assert {spec.name for spec in bank["fp32"].engine.inputs} == {"sample", "vector"}
    for timestep in (250.0, 750.0, 250.0):
        expected = [network(X, timestep, ROWS), network(X, timestep, np.array([3, 3]))]
        np.testing.assert_allclose(bank["fp32"](X, timestep, ROWS), expected, rtol=0, atol=1e-5)


def test_whole_graph_is_opened_where_it_is_asked_for(pieces: TinyBundle) -> None:
    denoiser = bank_of(pieces, whole=True)["fp32"]
    assert not denoiser.embeddings
    assert {spec.name for spec in denoiser.engine.inputs} == {"sample", "timestep", "class_labels"}
    np.testing.assert_array_equal(denoiser(X, 250.0, ROWS), bank_of(pieces)["fp32"](X, 250.0, ROWS))


def test_other_runtimes_are_given_whole_networks(pieces: TinyBundle) -> None:
    class Other:
        def open(self, graph: Path, rows: int) -> OnnxRuntimeEngine:
            return OnnxRuntimeEngine(graph, batch=rows)

    assert not bank_of(pieces, backend=Other())["fp32"].embeddings
    assert bank_of(pieces, backend=OnnxRuntimeBackend())["fp32"].embeddings


def test_embeddings_of_steps_to_come_are_computed_with_the_first(pieces: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = bank_of(pieces, timesteps={"fp32": [750.0, 250.0], "w8a8": [500.0]})["fp32"]
    engine = denoiser.embeddings["vector"].engine
    run, asked = engine._run, list[list[float]]()

    def record(feeds: Mapping[str, Any]) -> Any:
        asked.append(feeds["timestep"].tolist())
        return run(feeds)

    monkeypatch.setattr(engine, "_run", record)
    for timestep in (750.0, 250.0):
        denoiser(X, timestep, ROWS)
    assert asked == [[750.0] * 3 + [250.0] * 3]  # two classes and none


def test_rows_of_another_table_are_the_networks_too(pieces: TinyBundle) -> None:
    denoiser, network = bank_of(pieces)["fp32"], pieces.networks["fp32"]
    denoiser(X, 250.0, ROWS)
    backwards = class_labels(4, 3)
    moved = type(backwards)({"class_labels": np.array([2, 1, 0, 3])}, backwards.null)
    out = denoiser.conditioned(moved)(X, 250.0, ROWS)
    np.testing.assert_allclose(out[0], network(X, 250.0, np.array([0, 2])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [BODY, EMBEDDING])
def test_damaged_piece_is_told(pieces: TinyBundle, name: str) -> None:
    pieces.edit(name, lambda content: content[:-1])
    with pytest.raises(BundleError, match=r"changed or damaged"):
        bank_of(pieces)["fp32"]
    bank_of(pieces, whole=True)["fp32"]


def widened(graph: onnx.ModelProto) -> None:
    """One value more for each row."""
    graph.graph.node.append(onnx.helper.make_node("Concat", ["vector", "column"], ["wide"], axis=1))
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, ["N", 5]))


def freed(graph: onnx.ModelProto) -> None:
    """Does not say how many values a row has."""
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, ["N", "any"]))
    graph.graph.node.append(onnx.helper.make_node("Reshape", ["vector", "class_labels"], ["unknown"]))
    graph.graph.output[0].name = "unknown"


@pytest.mark.parametrize("change", [widened, freed])
def test_embedding_of_another_width_than_the_bodys_is_refused(pieces: TinyBundle, change: Callable[[onnx.ModelProto], None]) -> None:
    graph = onnx.load(pieces.folder / EMBEDDING)
    change(graph)
    onnx.save(graph, pieces.folder / EMBEDDING)
    pieces.rehash(EMBEDDING)
    with pytest.raises(BundleError, match="not the network that the manifest describes"):
        bank_of(pieces)["fp32"]


@pytest.mark.parametrize(
    ("body", "embeddings"),
    [(BODY, {"vector": WHOLE}), (BODY, {"other": EMBEDDING}), (WHOLE, {"vector": EMBEDDING}), (EMBEDDING, {"vector": EMBEDDING})],
    ids=["an embedding that asks for the state", "of another name", "that the body does not take", "no body"],
)
def test_pieces_that_do_not_fit_together_are_refused(pieces: TinyBundle, body: str, embeddings: Mapping[str, str]) -> None:
    describe(pieces, body, embeddings)
    with pytest.raises(BundleError, match="not the network that the manifest describes"):
        bank_of(pieces)["fp32"]


@pytest.mark.parametrize(("weights", "allowed"), [(f"{WHOLE}.data", True), (f"{BODY}.data", False)])
def test_piece_may_read_the_weights_of_its_whole_and_no_other_file(pieces: TinyBundle, weights: str, allowed: bool) -> None:
    expected = bank_of(pieces, whole=True)["fp32"](X, 250.0, ROWS)
    location = weights.rpartition("/")[2]
    onnx.save(onnx.load(pieces.folder / BODY), pieces.folder / BODY, save_as_external_data=True, location=location, size_threshold=100)
    for name in (BODY, weights):
        pieces.rehash(name)
    if allowed:
        np.testing.assert_array_equal(bank_of(pieces)["fp32"](X, 250.0, ROWS), expected)
        return
    with pytest.raises(
        BundleError, match=r"(?s)reads a file that is not its own.*fp32\.body\.onnx\.data.*no file other than fp32\.onnx\.data"
    ):
        bank_of(pieces)["fp32"]


def test_weights_in_another_folder_than_the_pieces_are_refused(pieces: TinyBundle) -> None:
    graph, moved = onnx.load(pieces.folder / BODY), "graphs/elsewhere/fp32.body.onnx"
    (pieces.folder / moved).parent.mkdir()
    onnx.save(graph, pieces.folder / moved, save_as_external_data=True, location="fp32.onnx.data", size_threshold=100)
    (pieces.folder / f"{WHOLE}.data").write_bytes(b"never read")
    for name in (moved, f"{WHOLE}.data"):
        pieces.rehash(name)
    describe(pieces, moved, {"vector": EMBEDDING})
    with pytest.raises(BundleError, match="reads a file that is not its own"):
        bank_of(pieces)["fp32"]
