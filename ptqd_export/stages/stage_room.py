"""Estimates how many bytes each stage writes, from the sizes of weights and states. Records and pictures are too small to count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from calib.quantizers.observers import VALUES_A_TENSOR
from calib.quantizers.outputs.input_rows import rows_of
from calib.quantizers.rules.precision import FLOAT_WIDTHS, Precision
from calib.walk.state_store import store_bytes
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.network.tracing import TracedNetwork

FLOAT32, FLOAT16 = 4, 2
"""Bytes of one weight, or of one value of a state."""


def traced(context: BuildContext) -> int:
    """Bytes of a full-precision graph."""
    return FLOAT32 * context.model.parameters


def decoder(context: BuildContext) -> int:
    """Bytes of the decoder's graph, and of another in half precision while the two are compared."""
    module = context.model.decoder
    bytes_each = FLOAT32 if context.high_precision == "fp32" else FLOAT32 + FLOAT16
    return 0 if module is None else bytes_each * sum(parameter.numel() for parameter in module.parameters())


def encoder(context: BuildContext) -> int:
    """Bytes of the encoder's graph."""
    module = context.model.encoder
    return 0 if module is None else FLOAT32 * sum(parameter.numel() for parameter in module.parameters())


def preview(context: BuildContext) -> int:
    """Bytes of the graph of the decoder of previews."""
    part = context.model.preview
    return 0 if part is None else FLOAT32 * sum(parameter.numel() for parameter in part.module.parameters())


def control(context: BuildContext) -> int:
    """Bytes of the control network's graph."""
    part = context.model.control_part
    return 0 if part is None else FLOAT32 * sum(parameter.numel() for parameter in part.module.parameters())


def text(context: BuildContext) -> int:
    """Bytes of the text encoders' graphs: at least the size of each encoder's largest weight file."""
    folders = () if context.model.prompts is None else context.model.prompts.folders
    return sum(max((path.stat().st_size for path in one.encoder.iterdir()), default=0) for one in folders)


def states(context: BuildContext) -> int:
    """Bytes of the states that are drawn, and of the chains that they are drawn from."""
    calibration = context.plan.calibration
    chains = max(-(-context.activation_samples // context.table.steps), calibration.batch_size)
    return _walk(context, chains, 1) + context.activation_samples * store_bytes(context.model.sample_shape)


def observed(prepared: Path) -> int:
    """Bytes of the sampled values of every layer's input and output, and of the rows of its input (in layers without groups)."""
    layers = TracedNetwork.load(prepared).layers
    widths = [layer.weights // layer.shape[0] for layer in layers]
    return FLOAT32 * (2 * len(layers) * VALUES_A_TENSOR + sum(rows_of(width) * width for width in widths))


def learned(prepared: Path) -> int:
    """Bytes of the learned integers, one byte each. Learning checks for room itself if its rows do not fit in memory."""
    return sum(layer.weights for layer in TracedNetwork.load(prepared).layers)


def quantized(context: BuildContext, prepared: Path) -> int:
    """Bytes of a quantized graph: at most 8 bits per layer weight, 32 bits for everything else, branches of low rank included.

    Half precision doubles the size, because a float32 graph is written first.
    """
    weights = learned(prepared)
    graph = weights + FLOAT32 * (max(context.model.parameters - weights, 0) + _branches(context, prepared))
    return graph if context.high_precision == FULL_PRECISION else 2 * graph


def _branches(context: BuildContext, prepared: Path) -> int:
    """Return the most weights that low-rank branches have."""
    rank = context.plan.quantization.low_rank or 0
    return sum(min(rank * sum(layer.shape), layer.weights) for layer in TracedNetwork.load(prepared).layers)


def converted(context: BuildContext, precision: Precision) -> int:
    """Bytes of a graph of full precision in another float type."""
    return context.model.parameters * FLOAT_WIDTHS[precision.name] // 8


def walked(context: BuildContext, graphs: Mapping[str, Path]) -> int:
    """Bytes of the walk's states and of every network's outputs, which are removed when the walk ends."""
    return _walk(context, context.plan.calibration.samples, len(graphs)) + _walk(context, fit_settings(context).paired, 1)


def _walk(context: BuildContext, samples: int, networks: int) -> int:
    return samples * store_bytes(context.model.sample_shape, networks, context.table.history)
