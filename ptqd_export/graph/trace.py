"""Traces a network to ONNX, and checks that the graph computes what torch computes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes import common
from torch import Tensor, nn

from calib.quantizers.rules.placement import Placement
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.chain.finite import is_finite
from engines.errors import PtqdError
from engines.networks.engine_denoiser import STATE, TIMESTEP
from ptqd_export.graph.free_batch import check_batch
from ptqd_export.graph.passes.attention import FuseAttention
from ptqd_export.graph.passes.group_norm import GroupNormToInstanceNorm
from ptqd_export.graph.passes.parameter_names import ParameterNames
from ptqd_export.graph.passes.void_squeezes import VoidSqueezes
from ptqd_export.graph.reading.transposed_weights import TransposedWeights
from ptqd_export.graph.untraceable import untraceable
from ptqd_export.models.base import Adapter, DecoderModule, LoadedModel

if TYPE_CHECKING:
    from onnxscript.rewriter import RewriteRule

OPSET = 21
PARITY = 1e-4
MOST_TRACED = 63
"""Largest batch declared when tracing; the graph accepts any batch. At 64, diffusers requests another memory layout of the same values, so
a range that includes 64 would be refused and traced a second time."""

MOST_SIDE = 2**15
"""Largest free height and width declared when tracing."""

OUTPUT = "out"


def trace(model: LoadedModel) -> ir.Model:
    """Traces the network: inputs `sample`, `timestep` and the conditions, output `out`, free batch, no metadata.

    Initializers have the network's own parameter names; transposed linear weights are called `<name>.T`.
    """
    names = (STATE, TIMESTEP, *model.adapter.conditions)
    return trace_module(model.adapter, dict(zip(names, model.example_inputs(2), strict=True)), prefix="network.")


def trace_decoder(decoder: DecoderModule, sample_shape: tuple[int, ...]) -> ir.Model:
    """Traces the first-stage decoder: input `sample`, output `out`, free batch, no metadata."""
    return trace_module(decoder, {STATE: decoder.example_states(2, sample_shape)})


def trace_module(
    module: nn.Module, inputs: Mapping[str, Tensor], prefix: str = "", outputs: Sequence[str] = (OUTPUT,), *, least_side: int | None = None
) -> ir.Model:
    """Traces a module.

    Args:
        module: module in evaluation mode.
        inputs: example inputs by their names in the graph, in the order of `forward`; the first axis of each is the batch, which is free.
        prefix: prefix to strip from parameter names.
        outputs: names of the outputs.
        least_side: least height and width of the inputs, [batch, channels, height, width], which are free then; None fixes them.

    Raises:
        UsageError: the network fixes the batch.
        PtqdError: the network cannot be traced.
    """
    axes = {0: torch.export.Dim("batch", min=1, max=MOST_TRACED)}
    if least_side is not None:
        axes |= {axis: torch.export.Dim(name, min=least_side, max=MOST_SIDE) for axis, name in ((2, "height"), (3, "width"))}
    dynamic_shapes = _as_passed(module, [axes for _ in inputs])
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic_shapes,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever the network or torch raises
        raise untraceable(error) from error
    assert program is not None
    graph: ir.Model = program.model
    check_batch(graph, module, tuple(inputs.values()), dynamic_shapes)
    ir.passes.Sequential(common.InlinePass(), VoidSqueezes(), ParameterNames(prefix), TransposedWeights())(graph)
    _simplify(graph)
    return graph


def _as_passed(module: nn.Module, free: Sequence[object]) -> tuple[object, ...]:
    """One entry per parameter of `forward`; an adapter takes all its conditions as one parameter."""
    if not isinstance(module, Adapter):
        return tuple(free)
    state, timestep, *conditions = free
    return (state, timestep, tuple(conditions)) if conditions else (state, timestep)


def _simplify(graph: ir.Model) -> None:
    """Does what `onnxscript.optimizer.optimize` does, but keeps equal parameters separate, because each belongs to its own layer."""
    from onnxscript import optimizer, rewriter

    rules = _rewrite_rules()
    for _ in range(2):
        optimizer.fold_constants_ir(graph, onnx_shape_inference=True)
        rewriter.rewrite(graph, rules)
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


def _rewrite_rules() -> list[RewriteRule]:
    """Return onnxscript's default rules, without those that take any addend below 1e-8 for 0: it may keep a division from 0 / 0."""
    from onnxscript import rewriter
    from onnxscript.rewriter.rules.common import _no_op, div_by_1_rule, mul_by_1_rule

    others = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule not in _no_op.rules.rules]
    return [*mul_by_1_rule.commute(), div_by_1_rule, *others]


def _clear_value_metadata(graph: ir.Graph) -> None:
    """Clear the metadata of values. The pass clears only that of nodes."""
    outputs = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *outputs):
        value.metadata_props.clear()


def lower(graph: ir.Model, placement: Placement) -> None:
    """Rewrite a traced graph in place to the forms that the placement requires."""
    wanted = [
        *([GroupNormToInstanceNorm()] if placement.group_norm == "instance" else ()),
        *([FuseAttention()] if placement.attention == "operator" else ()),
    ]
    ir.passes.Sequential(*wanted, common.RemoveUnusedNodesPass())(graph)


def check_parity(model: LoadedModel, path: Path) -> float:
    """Return the largest difference between the graph on ONNX Runtime and torch, relative to the largest output.

    Raises:
        PtqdError: the difference is more than 1e-4.
    """
    names = (STATE, TIMESTEP, *model.adapter.conditions)
    return check_module_parity(model.adapter, dict(zip(names, model.example_inputs(4), strict=True)), path)


def check_module_parity(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Does the same as `check_parity` for any module with one output and its graph."""
    with torch.no_grad():
        expected = module(*inputs.values()).numpy()
    found = OnnxRuntimeEngine(path).run({name: value.numpy() for name, value in inputs.items()})
    return check_outputs(found, expected, path.name)


def check_outputs(found: NDArray[np.floating], expected: NDArray[np.floating], graph: str) -> float:
    """Does the same as `check_parity` for outputs that are already computed. `graph` is the name of the graph for the error message."""
    if not is_finite(expected):
        raise PtqdError(
            "The model does not compute finite values.",
            found=f"NaN or infinity from torch, where {graph} was traced",
            expected="finite outputs for random inputs at timesteps of the whole training range",
            mend="run the model in its own pipeline: its weights may be damaged, or so large that they overflow",
        )
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= PARITY:
        raise PtqdError(
            "The traced graph does not compute what torch computes.",
            found=f"{graph}: a relative difference of {difference:.1e}",
            expected=f"at most {PARITY:.0e}",
            mend="report this model: it cannot be traced correctly yet",
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress output and logs. Errors still arrive as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
