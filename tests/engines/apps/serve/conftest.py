"""A bundle that takes prompts, and has two sizes."""

from __future__ import annotations

import shutil

import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.conftest import CLASSES, PRECISIONS, SIZE, TinyBundle, build_tiny_bundle

WORDS = {"zero": 0, "one": 1, "two": 2, "nothing": CLASSES}
"""Prompts of the bundle: names of its classes, and of the null class, which the empty prompt is too."""

TALL = (SIZE + 4, SIZE)


@pytest.fixture(scope="package")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A bundle like `tiny` that takes prompts and has a second size. Tests must not modify it."""
    bundle = build_tiny_bundle(tmp_path_factory.mktemp("prompted") / "bundle")
    _add_text(bundle)
    add_size(bundle)
    return bundle


def _add_text(bundle: TinyBundle) -> None:
    """A text encoder that reads the name of a class."""
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="nothing"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=1, pad_id=CLASSES, pad_token="nothing")
    tokenizer.enable_truncation(1)
    (bundle.folder / "text").mkdir()
    tokenizer.save(str(bundle.folder / "text/tokenizer.json"))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["N", 1])
    labels = helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["N"])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph([helper.make_node("Squeeze", ["input_ids", "axis"], ["class_labels"])], "text", [ids], [labels], [axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, bundle.folder / "text/encoder.onnx")
    part = {"graph": "text/encoder.onnx", "tokenizer": "text/tokenizer.json", "tokens": 1, "inputs": ["class_labels"]}
    bundle.edit_json(
        "manifest.json", lambda manifest: manifest["model"].update(text={"encoders": [part], "fixed": {}, "zero_without_negative": False})
    )
    for name in ("text/encoder.onnx", "text/tokenizer.json"):
        bundle.rehash(name)


def add_size(bundle: TinyBundle) -> TinyBundle:
    """Give a bundle the second size `TALL`, with the schedule of the first."""
    manifest = bundle.manifest()
    name, precisions, files = f"{TALL[0]}x{TALL[1]}", manifest["precisions"], []
    for precision in PRECISIONS:
        own = precisions[precision]["graph"]
        model = onnx.load(bundle.folder / own)
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[2].dim_value = TALL[0]
        precisions[precision] = {**precisions[precision], "graph": own.replace(".onnx", f".{name}.onnx")}
        files.append(precisions[precision]["graph"])
        onnx.save(model, bundle.folder / files[-1])
    files.append(f"sizes/{name}/schedules/default.json")
    (bundle.folder / files[-1]).parent.mkdir(parents=True)
    shutil.copy(bundle.folder / "schedules/default.json", bundle.folder / files[-1])
    record = {"model": {**manifest["model"], "sample_shape": [1, *TALL]}, "precisions": precisions}
    bundle.edit_json("manifest.json", lambda manifest: manifest.update(sizes=[record]))
    for file in files:
        bundle.rehash(file)
    return bundle
