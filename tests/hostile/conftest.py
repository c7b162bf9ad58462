"""A bundle with every kind of file that sampling reads: tokenizer and text encoder, embeddings, a decoder, graphs with external weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.bundle.contract import sealed
from engines.bundle.manifest import MANIFEST
from engines.host.files import sha256
from tests.conftest import SIZE, build_tiny_bundle
from tests.hostile.worker import Outcome

TOKENS = 4
WORDS = {"[PAD]": 0, "[UNK]": 1, "a": 2, "cat": 3, "dog": 4}
GRAPHS = {name: f"graphs/onnxruntime/{name}.onnx" for name in ("fp32", "w4a8", "w8a8")}
HIDDEN = {"name": "hidden", "dtype": "float32", "shape": [TOKENS, 2]}

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Subject:
    """A bundle whose files can be damaged one by one.

    Attributes:
        folder: folder of the bundle.
        output: folder for its samples.
        files: contents of the undamaged bundle's files, by name.
        expected: samples of the undamaged bundle, by the arguments that they were made with.
    """

    folder: Path
    output: Path
    files: dict[str, bytes]
    expected: dict[tuple[str, ...], Arrays] = field(default_factory=dict)

    def command(self, prompts: bool) -> list[object]:
        words = ["--prompt", "a cat"] if prompts else []
        return ["sample", self.folder, "--num", 2, "--seed", 1, "--format", "npz", "--output", self.output, "--overwrite", *words]

    def restore(self) -> None:
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)

    def put(self, name: str, content: bytes) -> None:
        """Replace a file and update its record in the manifest; a replaced manifest gets a correct digest."""
        if name == MANIFEST:
            content = json.dumps(sealed(json.loads(content))).encode()
        (self.folder / name).write_bytes(content)
        if name != MANIFEST:
            manifest = json.loads(self.files[MANIFEST])
            manifest["files"][name] = {"sha256": sha256(self.folder / name), "bytes": len(content)}
            (self.folder / MANIFEST).write_text(json.dumps(sealed(manifest)))

    def samples(self) -> Arrays:
        with np.load(self.output / "samples.npz") as archive:
            return {name: archive[name] for name in archive.files}

    def is_as_before(self, prompts: bool) -> bool:
        expected, found = self.expected[str(prompts),], self.samples()
        return expected.keys() == found.keys() and all(np.array_equal(expected[name], found[name]) for name in expected)


def reject(outcome: Outcome) -> None:
    raise AssertionError(f"exit code {outcome.exit_code}\n{outcome.message}")


@pytest.fixture(scope="session")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undamaged bundle. Tests must not modify it."""
    bundle = build_tiny_bundle(tmp_path_factory.mktemp("hostile") / "bundle")
    folder = bundle.folder
    for scale, name in enumerate(GRAPHS.values()):
        save_network(folder / name, 0.1 * (scale + 1))
    onnx.save(_encoder(), (folder / "encoder.onnx"))
    onnx.save(_decoder(), folder / "decoder.onnx")
    tokenizer().save(str(folder / "tokenizer.json"))
    rows = np.random.default_rng(1).normal(size=(3, TOKENS, 2))
    arrays: dict[str, Any] = {"hidden": rows.astype(np.float32), "null.hidden": np.zeros((TOKENS, 2), np.float32)}
    np.savez(folder / "rows.npz", **arrays)
    text = {"graph": "encoder.onnx", "tokenizer": "tokenizer.json", "tokens": TOKENS, "inputs": ["hidden"]}
    model = {
        "conditioning": {"inputs": [HIDDEN], "rows": 3, "null_class": None, "file": "rows.npz"},
        "decoder": {"file": "decoder.onnx", "image_shape": [1, SIZE, SIZE], "batch": 4},
        "text": {"encoders": [text], "fixed": {}, "zero_without_negative": False},
    }
    bundle.edit_json(MANIFEST, lambda manifest: manifest["model"].update(model))
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            bundle.rehash(path.relative_to(folder).as_posix())
    return folder


@pytest.fixture(autouse=True)
def _without_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def own_bundle(whole_bundle: Path, tmp_path: Path) -> Subject:
    folder = Path(shutil.copytree(whole_bundle, tmp_path / "bundle"))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return Subject(folder, tmp_path / "out", files)


def tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(length=TOKENS, pad_id=0, pad_token="[PAD]")
    made.enable_truncation(TOKENS)
    return made


def save_network(path: Path, scale: float) -> None:
    """Save `0.9 x + conv(x) + scale * mean(hidden) + t/1000`, with the convolution's weights in a file beside the graph."""
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    timestep = helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["N"])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", TOKENS, 2])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    weights = np.random.default_rng(7).normal(size=(1, 1, 3, 3)).astype(np.float32) / 9
    constants = {
        "weight": np.tile(weights, (16, 1, 1, 1)), "back": np.full((1, 16, 1, 1), 1 / 16, np.float32), "share": np.float32(0.9),
        "scale": np.float32(scale), "thousand": np.float32(1000), "axes": np.array([1, 2]), "plane": np.array([1, 2, 3]),
    }  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["hidden", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Div", ["timestep", "thousand"], ["time"]),
        helper.make_node("Add", ["scaled", "time"], ["vector"]),
        helper.make_node("Unsqueeze", ["vector", "plane"], ["bias"]),
        helper.make_node("Conv", ["sample", "weight"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["h", "back"], ["conv"]),
        helper.make_node("Mul", ["sample", "share"], ["skip"]),
        helper.make_node("Add", ["conv", "skip"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["out"]),
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", [sample, timestep, hidden], [out], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=512)


def _encoder() -> onnx.ModelProto:
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", TOKENS])
    hidden = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["N", TOKENS, 2])
    table = np.random.default_rng(3).normal(size=(len(WORDS), 2)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])],
        "encoder",
        [ids],
        [hidden],
        [numpy_helper.from_array(table, "table")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _decoder() -> onnx.ModelProto:
    sample = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 1, SIZE, SIZE])
    graph = helper.make_graph([helper.make_node("Tanh", ["sample"], ["out"])], "decoder", [sample], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
