"""Trace a network to ONNX once, and prove that the graph computes what torch computes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.rules.placement import Placement
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.errors import PtqdError
from engines.networks.engine_denoiser import STATE, TIMESTEP
from ptqd_export.graph.passes.attention import FuseAttention
from ptqd_export.graph.passes.group_norm import GroupNormToInstanceNorm
from ptqd_export.graph.passes.parameter_names import ParameterNames
from ptqd_export.graph.reading.transposed_weights import TransposedWeights
from ptqd_export.models.base import Adapter, Decoder, LoadedModel

OPSET = 21
PARITY = 1e-4
MOST_TRACED = 63
"""Largest batch that tracing promises, though the graph takes any: at 64 diffusers asks for another memory layout of the same values, and a
range with 64 inside would be refused and traced a second time."""

OUTPUT = "out"


def trace(model: LoadedModel) -> ir.Model:
    """The network as a graph: inputs `sample`, `timestep` and the conditions, output `out`, free batch, no metadata.

    Initializers carry the network's own parameter names, linear weights `<name>.T` where they were transposed.
    """
    names = (STATE, TIMESTEP, *model.adapter.conditions)
    return trace_module(model.adapter, dict(zip(names, model.example_inputs(2), strict=True)), prefix="network.")


def trace_decoder(decoder: Decoder, sample_shape: tuple[int, ...]) -> ir.Model:
    """The first stage as a graph: input `sample`, output `out`, free batch, no metadata."""
    return trace_module(decoder, {STATE: decoder.example_states(2, sample_shape)})


def trace_module(module: nn.Module, inputs: Mapping[str, Tensor], prefix: str = "", outputs: Sequence[str] = (OUTPUT,)) -> ir.Model:
    """A module as a graph.

    Args:
        module: in evaluation mode.
        inputs: by the name that they get, in the order of `forward`; the batch comes first in all of them, and is free.
        prefix: of the names of parameters that they lose in the graph.
        outputs: their names.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_TRACED)
    free = [{0: batch} for _ in inputs]
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_as_passed(module, free),
            optimize=False,
            verbose=False,
        )
    assert program is not None
    graph: ir.Model = program.model
    ir.passes.Sequential(ParameterNames(prefix), TransposedWeights())(graph)
    _simplify(graph)
    return graph


def _as_passed(module: nn.Module, free: Sequence[object]) -> tuple[object, ...]:
    """One entry a parameter of `forward`; an adapter takes all of its conditions as one."""
    if not isinstance(module, Adapter):
        return tuple(free)
    state, timestep, *conditions = free
    return (state, timestep, tuple(conditions)) if conditions else (state, timestep)


def _simplify(graph: ir.Model) -> None:
    """What `onnxscript.optimizer.optimize` does, but parameters that happen to be equal stay apart: each is a layer of its own."""
    from onnxscript import optimizer, rewriter

    common.InlinePass()(graph)
    for _ in range(2):
        optimizer.fold_constants_ir(graph, onnx_shape_inference=True)
        rewriter.rewrite(graph)
    ir.passes.Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    )(graph)
    _clear_value_metadata(graph.graph)


def _clear_value_metadata(graph: ir.Graph) -> None:
    """The pass clears that of nodes alone."""
    outputs = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *outputs):
        value.metadata_props.clear()


def lower(graph: ir.Model, placement: Placement) -> None:
    """Rewrite a traced graph, in place, into the forms that the placement asks for."""
    wanted = [
        *([GroupNormToInstanceNorm()] if placement.group_norm == "instance" else ()),
        *([FuseAttention()] if placement.attention == "operator" else ()),
    ]
    ir.passes.Sequential(*wanted, common.RemoveUnusedNodesPass())(graph)


def check_parity(model: LoadedModel, path: Path) -> float:
    """Largest difference between the graph on ONNX Runtime and torch, relative to the largest output.

    Raises:
        PtqdError: it is more than 1e-4.
    """
    names = (STATE, TIMESTEP, *model.adapter.conditions)
    return check_module_parity(model.adapter, dict(zip(names, model.example_inputs(4), strict=True)), path)


def check_module_parity(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> float:
    """The same of any module of one output, and its graph."""
    with torch.no_grad():
        expected = module(*inputs.values()).numpy()
    found = OnnxRuntimeEngine(path).run({name: value.numpy() for name, value in inputs.items()})
    return check_outputs(found, expected, path.name)


def check_outputs(found: NDArray[np.floating], expected: NDArray[np.floating], graph: str) -> float:
    """The same of outputs that were computed, of a graph by name."""
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= PARITY:
        raise PtqdError(
            "The traced graph does not compute what torch computes.",
            found=f"{graph}: a relative difference of {difference:.1e}",
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
