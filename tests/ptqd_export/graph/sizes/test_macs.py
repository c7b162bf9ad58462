"""Multiply-accumulates against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ptqd_export.graph.sizes.macs import count_macs
from ptqd_export.models.base import LoadedModel

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

AsModel = Callable[[nn.Module, tuple[int, ...]], LoadedModel]


@pytest.mark.parametrize(
    ("conv", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), 16 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 1), 16 * 12 * 8 * 3),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), 8 * 6 * 8 * 3 * 9),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), 16 * 12 * 6 * 1 * 9),
        (nn.Conv2d(3, 8, (1, 5), bias=False), 16 * 8 * 8 * 3 * 5),
    ],
)
def test_convolution(as_model: AsModel, conv: nn.Conv2d, macs: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x)
            return out

    counts = count_macs(as_model(Net(), (3, 16, 12)))
    assert counts["conv"] == counts[""] == macs


class Attention(nn.Module):
    """A linear layer on 10 tokens, a product of attention without weights, and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 12)])
        self.twice = nn.Linear(12, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks[0](x)
        out: Tensor = scaled_dot_product_attention(*(h.reshape(-1, 10, 3, 4).transpose(1, 2),) * 3).transpose(1, 2).reshape(-1, 10, 12)
        return torch.relu(self.twice(torch.relu(self.twice(out))))


def test_layers_are_counted_by_name_and_attention_products_in_the_whole(as_model: AsModel) -> None:
    counts = count_macs(as_model(Attention(), (10, 6)))
    linear, twice, products = 10 * 6 * 12, 2 * 10 * 12 * 12, 2 * 3 * 10 * 10 * 4
    assert counts["blocks.0"] == linear
    assert counts["twice"] == twice
    assert counts[""] == linear + twice + products


def test_counts_are_of_one_sample_of_the_conditional_branch(class_build: Built, cross_build: Built) -> None:
    for built, channels in ((class_build, 1), (cross_build, 2)):
        layers = {layer.name: layer for layer in built.network.layers}
        assert layers["conv_in"].macs == 8 * 8 * 16 * channels * 9
        assert layers["conv_out"].macs == 8 * 8 * 16 * channels * 9
        assert layers["time_embedding.linear_2"].macs == 64 * 64
        assert built.network.macs > sum(layer.macs for layer in layers.values())


def test_what_is_not_in_a_layer_is_the_attention_products(cross_build: Built) -> None:
    """Two products of 64 queries with 64 keys (self) or 5 tokens (cross), in each of the transformer blocks."""
    layers = cross_build.network.layers
    queries = [layer for layer in layers if layer.name.endswith("to_q")]
    products = sum(2 * 64 * (64 if "attn1" in layer.name else 5) * layer.shape[0] for layer in queries)
    assert len(queries) >= 6
    assert cross_build.network.macs - sum(layer.macs for layer in layers) == products
