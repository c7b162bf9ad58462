"""The stages of a build, in order, as `ptqd_export.stages.run_build` runs them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engines.apps.pictures.images import is_drawable
from engines.bundle.image_size import WRITTEN, size_name
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext


def planned_stages(context: BuildContext) -> tuple[str, ...]:
    """Return the names of the stages. Those of a further size end with it."""
    sizes = ["", *(f"-{size_name(size)}" for size in context.plan.model.sizes[1:])]
    network = [f"{stage}{size}" for size in sizes for stage in _network(context)]
    seen = [f"{stage}{size}" for size in sizes for stage in _observations(context)]
    seen += [f"gather-{stage}{size}" for size in sizes[1:] and sizes for stage in _observations(context)]
    precisions = [*_precisions(context), *(f"{stage}{size}" for size in sizes[1:] for stage in _graphs(context))]
    fit = [f"{stage}{size}" for size in sizes for stage in _fit(context)]
    return (*network, *seen, *precisions, *fit, *_finish(context))


def without_size(stage: str) -> str:
    """Return the name of a stage at the first size."""
    return re.sub(rf"-{WRITTEN}$", "", stage)


def _network(context: BuildContext) -> Iterator[str]:
    yield "trace"
    if context.model.control_part is not None:
        yield "control"
    if context.model.decoder is not None:
        yield "decoder"
    if context.model.encoder is not None:
        yield "encoder"
    if context.model.preview is not None:
        yield "preview"
    yield "states"
    if context.prepares:
        yield "prepare"


def _observations(context: BuildContext) -> Iterator[str]:
    if context.plan.quantization.activation_steps == "all":
        yield "observe"
    else:
        yield from (f"observe-{precision.name}" for precision in context.quantized_precisions)


def _precisions(context: BuildContext) -> Iterator[str]:
    quantization, quantized = context.plan.quantization, context.quantized_precisions
    if quantization.integer_layers != "all" and quantized:
        yield "integer-speed"
    for precision in quantized:
        if quantization.float_share > 0:
            yield f"noise-{precision.name}"
        if context.chooses_groups and precision.quantizes_activations:
            yield f"groups-{precision.name}"
        if quantization.learns(precision):
            yield f"reconstruct-{precision.name}"
        yield f"quantize-{precision.name}"
    yield from _floats_and_cuts(context)


def _graphs(context: BuildContext) -> Iterator[str]:
    """Yield the stages that make the graphs of a further size: what the precisions are is decided at the first."""
    yield from (f"quantize-{precision.name}" for precision in context.quantized_precisions)
    yield from _floats_and_cuts(context)


def _floats_and_cuts(context: BuildContext) -> Iterator[str]:
    yield from (f"convert-{precision.name}" for precision in context.engine_precisions if precision.weight_bits is None)
    if context.plan.reuse.cuts:
        yield from (f"cut-{name}" for name in (FULL_PRECISION, *(precision.name for precision in context.engine_precisions)))


def _fit(context: BuildContext) -> Iterator[str]:
    yield "statistics"
    if context.plan.steps.policy == "budget":
        yield from (("times",) if context.is_timed else ())
        yield from ("probes", *(() if context.cut is None else ("aging",)), "choice", "schedule")
    yield "check"


def _finish(context: BuildContext) -> Iterator[str]:
    if context.model.decoder is not None or is_drawable(context.model.sample_shape):
        yield "pictures"
    if context.model.prompts is not None:
        yield "text"
    yield "bundle"
    if context.is_timed and context.plan.steps.policy != "budget":
        yield "times"
    yield "optimize"
