"""How a network calls its modules: in which order, how often, and with which arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calib.rounding.module_calls import Inputs, ModuleCall, module_calls


def _forward(network: nn.Module, inputs: Inputs) -> object:
    return network(*inputs)


class Inner(nn.Module):
    """Takes all kinds of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, table: Tensor, scale: float, pair: tuple[Tensor, None]) -> Tensor:
        out: Tensor = self.layer(x + scale * pair[0]) * table.sum()
        return out


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.never, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.pooled = nn.Linear(4, 4)
        self.inner = Inner()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.twice(self.twice(x))
        out: Tensor = self.inner(x, torch.ones(2, 4), scale=2.0, pair=(x, None))
        return out, self.pooled(x.mean(dim=0, keepdim=True))


def _calls(rows: int) -> dict[str, ModuleCall]:
    return module_calls(Outer(), ["", "inner", "pooled", "twice", "never"], _forward, (torch.randn(rows, 4),))


def test_modules_come_in_the_order_of_their_first_calls() -> None:
    calls = _calls(8)
    assert list(calls) == ["", "twice", "inner", "pooled"]
    assert [call.order for call in calls.values()] == [0, 1, 2, 3]
    assert [call.times for call in calls.values()] == [1, 2, 1, 1]


def test_arguments_with_a_row_a_sample_are_told_from_others() -> None:
    for rows in (1, 2, 8):
        assert _calls(rows)["inner"].batched == (True, False, False, True, False)


def test_separable_is_what_runs_alone_on_stored_rows() -> None:
    separable = {name: call.separable for name, call in _calls(8).items()}
    assert separable == {"": False, "twice": False, "inner": True, "pooled": False}


def test_no_hooks_are_left() -> None:
    network = Outer()
    module_calls(network, ["", "inner"], _forward, (torch.randn(2, 4),))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
