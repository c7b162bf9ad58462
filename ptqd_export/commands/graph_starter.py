"""What a starter plan says about an ONNX graph: what its interface tells, and what has to be assumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ptqd_export.models.onnx_graph.graph_signature import TIMES, GraphSignature, find_signature
from ptqd_export.models.onnx_graph.onnx_model import describe_onnx
from ptqd_export.models.onnx_graph.reading.folded import check_operators
from ptqd_export.models.onnx_graph.reading.fused.fused_nodes import split_fused
from ptqd_export.models.onnx_graph.reading.onnx_file import read_interface, read_nodes
from ptqd_export.plan.graph_section import GraphSection, NoiseSection

SIDE = 64
"""Height and width that are assumed where a graph leaves them open."""

CONFIGURATIONS = ("scheduler_config.json", "scheduler/scheduler_config.json", "../scheduler/scheduler_config.json")
"""Where the configuration of the scheduler lies beside a graph that was exported from a pipeline."""


def graph_section(path: Path, folder: Path) -> tuple[GraphSection, tuple[str, ...]]:
    """Return the section `model.graph` for a graph, and notes about what was recognised and what was assumed.

    Args:
        path: file of the graph.
        folder: folder of the plan.

    Raises:
        UsageError: the file is no graph, it cannot be told which inputs are the state and the time, or operators are not supported.
    """
    inputs, outputs = read_interface(path)
    found = find_signature(inputs, outputs)
    check_operators(split_fused(read_nodes(path)), found.output.name)
    on_sigmas = TIMES.get(found.time.name.lower()) in ("sigma", "log_sigma", "c_noise")
    config = next((path.parent / name for name in CONFIGURATIONS if (path.parent / name).is_file()), None)
    scheduler = None if config is None else Path(os.path.relpath(config, folder)).as_posix()
    numbers = NoiseSection(sigma_min=0.002, sigma_max=80.0) if on_sigmas else NoiseSection()
    assumed, schedule = _open_sizes(found), numbers if scheduler is None else None
    section = GraphSection(
        scheduler=scheduler, schedule=schedule, state=found.state.name, time=found.time.name, output=found.output.name, shape=assumed
    )
    convention = describe_onnx(path, section, folder).convention
    implied = {"time_unit": convention.time_unit, "state_form": convention.state_form, "sigma_data": convention.sigma_data}
    section = section.model_copy(update={"predicts": convention.schedule.prediction_type, **implied})
    return section, tuple(_notes(found, section, whole=convention.schedule.whole_timesteps))


def _open_sizes(found: GraphSignature) -> tuple[int, ...] | None:
    """Return a shape of the state where the graph leaves sizes open; None if it states them."""
    sizes = (found.state.shape or ())[1:]
    outputs = (found.output.shape or (None,) * (len(sizes) + 1))[1:]
    if all(isinstance(size, int) for size in sizes):
        return None
    stated = [size if isinstance(size, int) else other for size, other in zip(sizes, outputs, strict=False)]
    return tuple(size if isinstance(size, int) else SIDE for size in stated)


def _notes(found: GraphSignature, section: GraphSection, *, whole: bool) -> Iterator[str]:
    others = ", ".join(map(str, found.others)) or "none"
    yield f"read from the graph: state {found.state}; time {found.time}; output {found.output}; other inputs: {others}"
    if section.schedule is None:
        yield f"noise schedule: {section.scheduler}, which lies beside the graph"
    elif section.schedule.sigma_min is not None:
        yield (
            "assumed, because a graph does not say it: noise levels from 0.002 to 80 (model.graph.schedule), the clean sample as output "
            "(model.graph.predicts), and c_in, c_skip and c_out inside the graph (model.graph.preconditioning). For a consistency "
            "model, set sampler.name to consistency, and sampler.steps to 1 or a few"
        )
    else:
        yield (
            "assumed, because a graph does not say it: 1000 timesteps with linear betas from 0.0001 to 0.02 (model.graph.schedule), and "
            "the noise as output (model.graph.predicts). If there is a scheduler_config.json, name it as model.graph.scheduler instead"
        )
    yield "the noisiest layers compute in float, up to a tenth of the multiplications (quantization.float_share); 0 quantizes all layers"
    yield f"the time is a {section.time_unit} (model.graph.time_unit); the state is {section.state_form} (model.graph.state_form)"
    if whole:
        yield (
            f"the graph looks {found.time.name} up in a table, so chains may visit whole timesteps alone: those of ddim, ddpm and plms, or "
            "of sampler.timesteps; a build refuses others"
        )
    if section.shape is not None:
        yield f"the graph leaves sizes open: model.graph.shape is {list(section.shape)}; set the shape of the model's own states"
    for one in found.others:
        if one.dtype.startswith(("INT", "UINT")) and len(one.shape or ()) <= 1:
            yield f"if {one.name} is a class label, give their number as model.graph.inputs.{one.name}.labels, and no model.conditions"
