"""A tiny bundle whose networks are cut behind their first convolution, and whose odd steps reuse what is kept there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper
from onnx.utils import Extractor

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

CUT = "skip_0"


def cut_bundle(bundle: TinyBundle) -> TinyBundle:
    """Cut every precision of a bundle, and let its default schedule reuse at odd steps."""
    for name in bundle.networks:
        write_cut(bundle, name)
    bundle.edit_json("schedules/default.json", reuse_at_odd_steps)
    bundle.rehash("schedules/default.json")
    return bundle


def write_cut(bundle: TinyBundle, name: str, output: str = "h3") -> None:
    folder = "graphs/onnxruntime"
    whole = onnx.shape_inference.infer_shapes(onnx.load(bundle.folder / folder / f"{name}.onnx"))
    (inner,) = (value.type.tensor_type for value in whole.graph.value_info if value.name == output)
    shape = [dim.dim_param or dim.dim_value for dim in inner.shape.dim]
    full, kept = onnx.ModelProto(), helper.make_tensor_value_info("kept", TensorProto.FLOAT, shape)
    full.CopyFrom(whole)
    full.graph.node.append(helper.make_node("Identity", [output], ["kept"]))
    full.graph.output.append(kept)
    reuse = Extractor(whole).extract_model(["sample", output], ["out"])
    reuse.graph.node.insert(0, helper.make_node("Identity", ["kept"], [output]))
    del reuse.graph.input[:]
    reuse.graph.input.extend([*whole.graph.input, kept])
    files = {"full": f"{folder}/{name}.{CUT}.full.onnx", "reuse": f"{folder}/{name}.{CUT}.reuse.onnx"}
    for kind, model in (("full", full), ("reuse", reuse)):
        onnx.save(model, bundle.folder / files[kind])
        bundle.rehash(files[kind])
    record = {CUT: {**files, "bit_operations_saved_all": 2.0}}
    bundle.edit_json("manifest.json", lambda manifest: manifest["precisions"][name].update(cuts=record))


def reuse_at_odd_steps(schedule: dict[str, Any]) -> None:
    for step in schedule["steps"][1::2]:
        step["corrections"][f"{step['precision']}+{CUT}"] = step["corrections"][step["precision"]]
        step["reuse"] = CUT
