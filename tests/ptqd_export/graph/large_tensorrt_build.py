"""Run one half of the 36 M proof in its own process and print the peak memory in GB: `export` writes w8a8.onnx, `build` builds it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def export(folder: Path) -> None:
    """Trace and quantize a DDPM U-Net with 36 million random weights; scales cover the full range, and the float part is float16."""
    import onnx_ir as ir
    import torch
    from onnx_ir.passes import common

    from calib.quantizers.observers import observe_activations
    from calib.quantizers.quantize import QuantizationSettings, Quantizer
    from calib.quantizers.rules.placement import PLACEMENTS
    from calib.quantizers.rules.precision import Precision
    from calib.quantizers.scale_type import with_scales_in
    from ptqd_export.graph.graph_files import save_graph
    from ptqd_export.graph.passes.half_precision import ToHalfPrecision
    from ptqd_export.graph.passes.quantize_dequantize import InsertQuantization
    from ptqd_export.graph.reading.graph_layers import find_layers, weighted_nodes
    from ptqd_export.graph.trace import lower, trace
    from tests.ptqd_export.graph.large_u_net import large_u_net

    placement, model = PLACEMENTS["tensorrt"], large_u_net()
    network = model.adapter.network
    graph = trace(model)
    lower(graph, placement)
    layers = find_layers(graph.graph, dict.fromkeys(weighted_nodes(graph.graph), 1))
    with observe_activations(network, [layer.source for layer in layers], [], 1) as seen, torch.no_grad():
        model.adapter(*model.example_inputs(2))
    found = Quantizer(network, layers, seen, placement, QuantizationSettings("max", "max")).quantize(Precision.parse("w8a8"))
    passes = (InsertQuantization(with_scales_in("fp16", found), placement), ToHalfPrecision(), common.RemoveUnusedNodesPass())
    ir.passes.Sequential(*passes)(graph)
    save_graph(graph, folder / "w8a8.onnx")


def build(folder: Path) -> None:
    """Check the graph and build its engine with the real builder."""
    from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
    from engines.backends.tensorrt.building.engine_builder import build_engine
    from ptqd_export.graph.checks.tensorrt_checks import check_tensorrt_graph

    check_tensorrt_graph(folder / "w8a8.onnx")
    build_engine(BuildSpec(folder / "w8a8.onnx", "tensorrt-rtx", BatchProfile(1, 2, 8)), folder / "w8a8.engine")
    assert (folder / "w8a8.engine").stat().st_size > 30e6


def peak_gigabytes() -> float:
    """Peak memory in GB of this process or of its finished children, whichever is larger."""
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * 1024 / 1e9


if __name__ == "__main__":
    {"export": export, "build": build}[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write(f"{peak_gigabytes()}\n")
