"""Graphs that TensorRT refuses or crashes on are refused by the name of the node; the real builder is asked whether it really does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir
import pytest

from engines.errors import PtqdError
from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph

CONVOLUTION = """
    g (float[N,4,8,8] x{inputs}) => (float[N,4,8,8] y)
    <{kind}[4,4,1,1] w = {{{weights}}}, float[4] s = {{0.1, 0.2, 0.3, 0.4}}, float sx = {{{scale}}}, {zero_kind} z = {{{zero}}},
     float[4] b = {{1, 2, 3, 4}}, int32[4] c = {{1, 2, 3, 4}}>
    {{ {q} {d} {conv} }}"""

FORM = {
    "inputs": "", "kind": "int8", "weights": ", ".join(str(i % 7) for i in range(16)), "scale": "0.05", "zero_kind": "int8", "zero": "0",
    "q": "q = QuantizeLinear (x, sx, z) xd = DequantizeLinear (q, sx, z)", "d": "d = DequantizeLinear <axis = 0> (w, s)",
    "conv": "y = Conv (xd, d, b)",
}  # fmt: skip


@dataclass(frozen=True)
class Refused:
    """What is changed about the good graph, and what is said of it.

    Attributes:
        builder: what the real builder makes of it: `refuses`, `crashes`, or `takes` where it would mean something else.
    """

    change: dict[str, str]
    node: str
    message: str
    builder: str


REFUSED = {
    "zero point": Refused({"zero": "3"}, "q (QuantizeLinear)", "zero point 3", "refuses"),
    "unsigned": Refused({"zero_kind": "uint8"}, "q (QuantizeLinear)", "uint8 integers", "takes"),
    "unsigned by default": Refused(
        {"q": "q = QuantizeLinear (x, sx) xd = DequantizeLinear (q, sx)"}, "q (QuantizeLinear)", "uint8 integers", "takes"
    ),
    "integer bias": Refused(
        {"conv": "bd = DequantizeLinear <axis = 0> (c, s) y = Conv (xd, d, bd)"}, "bd (DequantizeLinear)", "INT32 c", "refuses"
    ),
    "4-bit convolution": Refused({"kind": "int4"}, "y (Conv)", "weight w in INT4", "refuses"),
    "4-bit activations": Refused({"zero_kind": "int4"}, "q (QuantizeLinear)", "INT4 integers", "refuses"),
    "scale of a pair": Refused(
        {"inputs": ", float r", "q": "q = QuantizeLinear (x, r, z) xd = DequantizeLinear (q, r, z)"},
        "q (QuantizeLinear)", "r is not stored in the graph", "crashes",
    ),
    "scale of DequantizeLinear": Refused(
        {"inputs": ", float r", "q": "q = QuantizeLinear (x, sx, z) xd = DequantizeLinear (q, r, z)"},
        "xd (DequantizeLinear)", "r is not stored in the graph", "crashes",
    ),
    "cast": Refused(
        {"kind": "int4", "d": "w8 = Cast <to = 3> (w) d = DequantizeLinear <axis = 0> (w8, s)"}, "w8 (Cast)", "a Cast of INT4", "refuses"
    ),
    "multiplied weight": Refused({"d": "d = Cast <to = 1> (w)"}, "d (Cast)", "w in INT8", "refuses"),
    "scale of nothing": Refused({"scale": "0"}, "q (QuantizeLinear)", "a scale of 0", "refuses"),
}  # fmt: skip

GOOD = {
    "as written": {},
    "no zero point, signed": {"q": "q = QuantizeLinear <output_dtype = 3> (x, sx) xd = DequantizeLinear (q, sx)"},
    "no bias": {"conv": "y = Conv (xd, d)"},
    "float input": {"q": "", "conv": "y = Conv (x, d, b)"},
    "constant scale": {"q": "k = Constant <value = float {0.05}> () q = QuantizeLinear (x, k, z) xd = DequantizeLinear (q, k, z)"},
    "4-bit range": {
        "q": "lo = Constant <value = float {-0.4}> () hi = Constant <value = float {0.35}> () xc = Clip (x, lo, hi) "
        "q = QuantizeLinear (xc, sx, z) xd = DequantizeLinear (q, sx, z)"
    },
}

Parse = Callable[[str], ir.Model]


def _save(parse_graph: Parse, change: dict[str, str], path: Path) -> Path:
    ir.save(parse_graph(CONVOLUTION.format(**(FORM | change))), path)
    return path


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_refused_graph_is_told_with_its_node(parse_graph: Parse, tmp_path: Path, refused: Refused) -> None:
    with pytest.raises(PtqdError) as caught:
        check_tensorrt_graph(_save(parse_graph, refused.change, tmp_path / "m.onnx"))
    what, found, expected, mend = str(caught.value).splitlines()
    assert what.startswith("TensorRT does not accept m.onnx: ")
    assert found == f"  found:    {refused.message}, node {refused.node}"
    assert (expected[:12], mend[:12]) == ("  expected: ", "  mend:     ")


@pytest.mark.parametrize("change", GOOD.values(), ids=GOOD)
def test_good_graph_passes(parse_graph: Parse, tmp_path: Path, change: dict[str, str]) -> None:
    check_tensorrt_graph(_save(parse_graph, change, tmp_path / "m.onnx"))


ASKED = """
import os
import sys
import tensorrt_rtx as trt

def build(path):
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, logger).parse_from_file(path):
        return 1
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 8, 8))
    config.add_optimization_profile(profile)
    return 0 if builder.build_serialized_network(network, config) is not None else 1

for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os._exit(build(path))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_builder_does_with_them_what_is_said_here(parse_graph: Parse, tmp_path: Path) -> None:
    said = [one.builder for one in REFUSED.values()] + ["takes"] * len(GOOD)
    changes = [one.change for one in REFUSED.values()] + list(GOOD.values())
    paths = [_save(parse_graph, change, tmp_path / f"{i}.onnx") for i, change in enumerate(changes)]
    done = subprocess.run([sys.executable, "-c", ASKED, *map(str, paths)], capture_output=True, text=True, check=True, timeout=300)
    found = ["takes" if code == "0" else "refuses" if code == "1" else "crashes" for code in done.stdout.split()]
    assert dict(zip([*REFUSED, *GOOD], found, strict=True)) == dict(zip([*REFUSED, *GOOD], said, strict=True))
