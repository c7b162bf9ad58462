"""A fixture that observes and quantizes the networks of `quantized_networks`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from calib.quantizers.observers import observe_activations
from calib.quantizers.quantize import QuantizationSettings, Quantizer
from calib.quantizers.rules.placement import Placement
from calib.quantizers.rules.precision import Precision
from ptqd_export.graph.reading.graph_layers import find_layers
from tests.ptqd_export.graph.passes.quantized_networks import DEFAULT, ORT, SHAPES, Case, GraphOf, Kind


@pytest.fixture
def case(graph_of: GraphOf) -> Callable[..., Case]:
    def make(
        kind: Kind,
        precision: str,
        change: Callable[[nn.Module], object] = nn.Module.eval,
        placement: Placement = ORT,
        settings: QuantizationSettings = DEFAULT,
    ) -> Case:
        torch.manual_seed(0)
        network = kind().eval().requires_grad_(False)
        change(network)
        x = torch.randn(16, *SHAPES[kind], generator=torch.Generator().manual_seed(1))
        model = graph_of(kind.text, network)
        layers = find_layers(model.graph, dict.fromkeys(dict(network.named_modules()), 1))
        with observe_activations(network, [layer.source for layer in layers], [layer.name for layer in layers], 1) as seen:
            network(x)
        quantizer = Quantizer(network, layers, seen, placement, settings)
        return Case(placement, network, model, x, quantizer.quantize(Precision.parse(precision)))

    return make
