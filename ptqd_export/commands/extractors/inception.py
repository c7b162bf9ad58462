"""`ptqd-export extractor inception`: the network of published FID, sFID and Inception Scores as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from engines.apps.evaluate.extractor import FEATURES, LOGITS, SPATIAL
from ptqd_export.commands.extractors.inception_network import SIDE, FidInception
from ptqd_export.commands.extractors.picture_inputs import PictureNodes, take_pictures
from ptqd_export.commands.extractors.weights_file import load_state, read_state
from ptqd_export.graph.trace import trace_module

NAME = "fid-inception"


def inception_graph(weights: Path) -> ir.Model:
    """Return the network with its weights. Pictures are rounded to 256 levels and resized as TensorFlow 1 did.

    Raises:
        UsageError: the weights are of another network.
        PtqdError: the weights cannot be read.
    """
    network = FidInception()
    load_state(network, read_state(weights), weights)
    graph = trace_module(network, {"images": torch.zeros(2, 3, SIDE, SIDE)}, outputs=(FEATURES, SPATIAL, LOGITS))
    take_pictures(graph, _prepare, NAME)
    return graph


def _prepare(nodes: PictureNodes) -> ir.Value:
    """Resize between levels 0 to 255, without centring pixels, then scale to about [-1, 1]."""
    resized = nodes.resized(nodes.levels(), np.array([SIDE, SIDE]), (2, 3), mode="linear", coordinate_transformation_mode="asymmetric")
    return nodes.op("Div", nodes.op("Sub", resized, np.float32(128)), np.float32(128))
