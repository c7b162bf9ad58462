"""What is observed of attention, and how it is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from calib.quantizers.attention.observed_attention import AttentionObserver


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(x, 2 * x, 3 * x)


class Network(nn.Module):
    """Two modules attend, the second of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Attending() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks[1](self.blocks[1](self.blocks[0](x)))
        return out


def test_attention_has_the_name_of_its_module_in_the_order_of_calls() -> None:
    network = Network()
    observer = AttentionObserver(network, calls=2)
    for scale in (1.0, 5.0):
        with observer.run():
            network(scale * torch.ones(2, 3, 4, 16))
    assert [site.name for site in observer.sites] == ["blocks.0", "blocks.1", "blocks.1#2"]
    assert {site.macs for site in observer.sites} == {2 * 3 * 4 * 4 * 16}
    assert list(observer.seen)[:3] == ["blocks.0.query", "blocks.0.key", "blocks.0.value"]
    assert not network.blocks[0]._forward_hooks
    assert not network.blocks[0]._forward_pre_hooks


def test_query_and_key_are_seen_with_the_root_of_the_scale() -> None:
    network = Network()
    observer = AttentionObserver(network, calls=2)
    for scale in (1.0, 5.0):
        with observer.run():
            network(scale * torch.ones(2, 3, 4, 16))
    highest = [observer.seen[f"blocks.0.{part}"].high for part in ("query", "key", "value")]
    assert highest == pytest.approx([5 / 2, 10 / 2, 15])  # the scale is 1 / sqrt(16)
    assert sorted(set(observer.seen["blocks.0.value"].values.tolist())) == [3, 15]
