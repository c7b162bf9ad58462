"""A network that torch cannot trace: the message names the network's own line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from engines.errors import PtqdError
from ptqd_export.graph.trace import trace_module


class Branching(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        if timestep.sum() > 500:
            return sample
        return 2 * sample


def test_branch_on_a_value_is_named() -> None:
    with pytest.raises(PtqdError, match=r"(?s)cannot be traced.*at test_untraceable\.py:\d+: if timestep\.sum\(\) > 500:.*torch\.where"):
        trace_module(Branching(), {"sample": torch.ones(2, 1, 4, 4), "timestep": torch.ones(2)})
