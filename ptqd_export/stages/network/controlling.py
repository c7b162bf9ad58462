"""Stage `control`: traces the control network to a graph, and verifies it against torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.bundle.manifest import ControlNetworkRecord, ControlRecord
from engines.networks.control import IMAGES
from ptqd_export.graph.checks.graph_checks import check_graph
from ptqd_export.graph.graph_files import save_graph
from ptqd_export.graph.trace import check_module_parity, lower, trace_module
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.reporter import Reporter

CONTROL = "control.onnx"
CONTROL_IMAGES = "conditioning/control.npz"


def make_control(context: BuildContext, folder: Path, _reporter: Reporter) -> None:
    """Write `control.onnx`: inputs `control_image` and some of the network's; output `out`, the residuals of a row; free batch."""
    part = context.model.control_part
    assert part is not None
    graph = trace_module(part.module, part.example_inputs(2), prefix="network.")
    lower(graph, context.placement)
    path = folder / CONTROL
    save_graph(graph, path)
    check_graph(context.placement, path, ())
    check_module_parity(part.module, part.example_inputs(3), path)


def control_record(model: LoadedModel) -> ControlRecord | None:
    """Return the manifest's record of the residuals; None if the network takes none."""
    if model.control is None:
        return None
    part = model.control_part
    network = None if part is None else ControlNetworkRecord(file=CONTROL, image_shape=part.image_shape, images=CONTROL_IMAGES)
    return ControlRecord(inputs=model.control.inputs, network=network)


def control_arrays(model: LoadedModel) -> dict[str, np.ndarray] | None:
    """Return the content of the file of control images; None if there is no control network."""
    return None if model.control_part is None else {IMAGES: model.control_part.pixels}
