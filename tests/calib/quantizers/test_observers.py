"""Observers see what modules are given and return, in bounded memory, and leave no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calib.quantizers import observers
from calib.quantizers.observers import VALUES_A_TENSOR, ObservedActivations, observe_activations
from calib.quantizers.outputs import input_rows


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


@pytest.fixture
def network() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers()


def _batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(10, 3, generator=generator) * (1 + i) for i in range(count)]


def _observe(network: TwoLayers, batches: list[Tensor]) -> dict[str, ObservedActivations]:
    with observe_activations(network, ["first", "second"], ["second"], len(batches)) as seen, torch.no_grad():
        for batch in batches:
            network(batch)
    return seen


def test_ranges_are_those_of_every_value_and_include_zero(network: TwoLayers) -> None:
    batches = _batches()
    seen = _observe(network, batches)
    assert set(seen) == {"first.input", "second.input", "second.output"}
    inputs = torch.cat(batches)
    hidden = torch.relu(network.first(inputs)).detach()
    out = network.second(hidden).detach()
    for name, values in (("first.input", inputs), ("second.input", hidden), ("second.output", out)):
        assert seen[name].low == min(0.0, values.min().item())
        assert seen[name].high == pytest.approx(max(0.0, values.max().item()))


def test_values_are_drawn_from_every_call_in_equal_numbers(network: TwoLayers) -> None:
    batches = _batches(4)
    seen = _observe(network, batches)
    share = VALUES_A_TENSOR // 4
    drawn = seen["first.input"].values
    assert drawn.shape == (4 * share,)
    for i, batch in enumerate(batches):
        part = drawn[i * share : (i + 1) * share]
        assert set(part.tolist()) == set(batch.flatten().tolist())  # 30 values, drawn 16384 times


def test_memory_does_not_grow_with_the_number_of_calls(network: TwoLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observers, "VALUES_A_TENSOR", 100)
    assert len(_observe(network, _batches(10))["first.input"].values) == 100
    assert len(_observe(network, _batches(300))["first.input"].values) == 300  # one value of a call at least


def test_rows_of_a_layers_input_are_drawn_from_every_call(network: TwoLayers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_rows, "MOST_ROWS", 40)
    batches = _batches(4)
    rows = _observe(network, batches)["second.output"].rows
    assert rows.shape == (40, 1, 4)
    for i, batch in enumerate(batches):
        seen_by_second = torch.relu(network.first(batch)).detach()
        distance = torch.cdist(rows[10 * i : 10 * (i + 1), 0], seen_by_second).amin(dim=1)
        torch.testing.assert_close(distance, torch.zeros(10), rtol=0, atol=1e-3)


def test_the_same_run_draws_the_same_values(network: TwoLayers) -> None:
    first, second = (_observe(network, _batches())["second.output"] for _ in range(2))
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=0)
    torch.testing.assert_close(first.rows, second.rows, rtol=0, atol=0)


def test_observing_does_not_change_the_network_and_hooks_go(network: TwoLayers) -> None:
    x = _batches()[0]
    expected = network(x)
    with observe_activations(network, ["first"], ["second"], 1):
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="shapes"), observe_activations(network, ["first"], ["second"], 1):
        network(torch.zeros(2, 5))
    assert not network.first._forward_pre_hooks
    assert not network.second._forward_hooks


def test_a_layer_called_twice_is_seen_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) + self.layer(10 * x)
            return out

    network = Twice()
    with observe_activations(network, ["layer"], [], 1) as seen:
        network(torch.tensor([[1.0, -2.0]]))
    assert (seen["layer.input"].low, seen["layer.input"].high) == (-20.0, 10.0)


def test_observations_together_are_those_of_all_states(network: TwoLayers) -> None:
    first, second = (_observe(network, [batch])["second.output"] for batch in _batches()[:2])
    both = ObservedActivations.together([first, second])
    assert (both.low, both.high) == (min(first.low, second.low), max(first.high, second.high))
    torch.testing.assert_close(both.values, torch.cat([first.values, second.values]), rtol=0, atol=0)
    torch.testing.assert_close(both.rows, torch.cat([first.rows, second.rows]), rtol=0, atol=0)


def test_thinned_observations_keep_the_range_of_all(network: TwoLayers) -> None:
    whole = _observe(network, _batches())["second.output"]
    third = whole.thinned(3)
    assert (third.low, third.high) == (whole.low, whole.high)
    torch.testing.assert_close(third.values, whole.values[::3], rtol=0, atol=0)
    torch.testing.assert_close(third.rows, whole.rows[::3], rtol=0, atol=0)


def test_observations_survive_a_file(network: TwoLayers, tmp_path: Path) -> None:
    seen = _observe(network, _batches())["second.output"]
    np.savez(tmp_path / "seen.npz", allow_pickle=False, **seen.arrays())
    with np.load(tmp_path / "seen.npz") as archive:
        loaded = ObservedActivations.from_arrays(archive)
    torch.testing.assert_close(loaded.values, seen.values, rtol=0, atol=0)
    torch.testing.assert_close(loaded.rows, seen.rows, rtol=0, atol=0)
    assert (loaded.low, loaded.high) == (seen.low, seen.high)
