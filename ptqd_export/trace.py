"""Trace a network to ONNX once, and prove that the graph computes what torch computes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from calib.placement import Placement
from engines.backends.onnxruntime import OnnxRuntimeEngine
from engines.errors import PtqdError
from engines.network import STATE, TIMESTEP
from ptqd_export.models.base import LoadedModel
from ptqd_export.passes.group_norm import GroupNormToInstanceNorm
from ptqd_export.passes.parameter_names import ParameterNames
from ptqd_export.passes.transposed_weights import TransposedWeights

OPSET = 21
PARITY = 1e-4
OUTPUT = "out"


def trace(model: LoadedModel) -> ir.Model:
    """The network as a graph: inputs `sample`, `timestep` and the conditions, output `out`, free batch, no metadata.

    Initializers carry the network's own parameter names, linear weights `<name>.T` where they were transposed.
    """
    from onnxscript import optimizer

    inputs = model.example_inputs(2)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    free = [{0: batch} for _ in inputs]
    with _quiet():
        program = torch.onnx.export(
            model.adapter,
            inputs,
            input_names=[STATE, TIMESTEP, *model.adapter.conditions],
            output_names=[OUTPUT],
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(free[0], free[1], tuple(free[2:])),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    graph: ir.Model = program.model
    ir.passes.Sequential(ParameterNames("network."), TransposedWeights())(graph)
    optimizer.optimize(graph)
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.DeduplicateInitializersPass(size_limit=1024),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    )(graph)
    return graph


def lower(graph: ir.Model, placement: Placement) -> None:
    """Rewrite a traced graph, in place, into the forms that the placement asks for."""
    if placement.group_norm == "instance":
        ir.passes.Sequential(GroupNormToInstanceNorm(), common.RemoveUnusedNodesPass())(graph)


def check_parity(model: LoadedModel, path: Path) -> float:
    """Largest difference between the graph on ONNX Runtime and torch, relative to the largest output.

    Raises:
        PtqdError: it is more than 1e-4.
    """
    inputs = model.example_inputs(4)
    with torch.no_grad():
        expected = model.adapter(*inputs).numpy()
    names = (STATE, TIMESTEP, *model.adapter.conditions)
    found = OnnxRuntimeEngine(path).run({name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= PARITY:
        raise PtqdError(
            "The traced graph does not compute what torch computes.",
            found=f"a relative difference of {difference:.1e}",
            expected=f"at most {PARITY:.0e}",
            mend="report this model: tracing it is not supported",
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its progress; errors still come through as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
