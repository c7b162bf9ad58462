"""`ptqd-export extractor lpips`: the perceptual distance LPIPS as ONNX."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import torch

from engines.apps.evaluate.scorers.lpips_scorer import DISTANCE, INPUTS, LEAST_SIDE
from ptqd_export.commands.extractors.lpips_network import LpipsNetwork, NetworkName
from ptqd_export.commands.extractors.picture_inputs import take_pictures
from ptqd_export.commands.extractors.weights_file import load_state, read_state
from ptqd_export.graph.trace import trace_module

SIDE = 32
"""Least width and height of the pictures."""
CLASSIFIER = "classifier."


def lpips_graph(name: NetworkName, backbone: Path, linear: Path) -> ir.Model:
    """Return the network with its weights: inputs `images` and `others`, output `distance` [batch].

    Args:
        name: network that compares the pictures.
        backbone: torchvision's weights of that network; the classifier is left out.
        linear: weights of the channels, as published with LPIPS.

    Raises:
        UsageError: the weights are of other networks.
        PtqdError: the weights cannot be read.
    """
    network = LpipsNetwork(name)
    state = {key: value for key, value in read_state(backbone).items() if not key.startswith(CLASSIFIER)}
    load_state(network, state | read_state(linear), backbone)
    examples = {picture: torch.rand(2, 3, SIDE + 32, SIDE + 16) for picture in INPUTS}
    graph = trace_module(network, examples, outputs=(DISTANCE,), least_side=SIDE)
    take_pictures(graph, lambda nodes: nodes.picture, f"lpips-{name}")
    graph.metadata_props[LEAST_SIDE] = str(SIDE)
    return graph
