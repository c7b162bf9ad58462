"""Mapped weights are the same weights, and lie in a file."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptqd_export.models.tensors.mapped_weights import LEAST_BYTES, map_tensors, map_weights, share_values


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(600, 600), nn.Linear(600, 600), nn.Linear(600, 3))
    made[1].weight = made[0].weight
    made.register_buffer("table", torch.randn(3, 200_000))
    return made.eval()


def lies_in_a_file_without_a_name(value: Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(side, 16) for side in line.split(" ", 1)[0].split("-"))
        if begin <= value.data_ptr() < end:
            return re.search(r"/ptqd-weights-.* \(deleted\)$", line) is not None
    return False


def test_large_tensors_move_to_a_file_and_keep_their_values_and_their_sharing() -> None:
    mapped, expected = network(), network()
    map_weights(mapped)
    assert mapped.state_dict().keys() == expected.state_dict().keys()
    for name, value in mapped.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0, atol=0)
        assert lies_in_a_file_without_a_name(value) == (value.nbytes >= LEAST_BYTES)
    assert mapped[1].weight is mapped[0].weight
    x = torch.randn(5, 600)
    torch.testing.assert_close(mapped(x), expected(x), rtol=0, atol=0)


def test_a_copy_of_one_tensor_does_not_copy_the_others() -> None:
    mapped = network()
    map_weights(mapped)
    table = copy.deepcopy(mapped.get_buffer("table"))
    assert table.untyped_storage().nbytes() == table.nbytes


def test_a_network_of_small_tensors_needs_no_file() -> None:
    small = nn.Linear(3, 3)
    before = small.weight.data_ptr()
    map_weights(small)
    assert small.weight.data_ptr() == before


def test_networks_share_the_values_that_are_equal() -> None:
    one, other = network(), network()
    weight = other.get_parameter("0.weight")
    weight.data += 1
    own = weight.data_ptr()
    share_values(other, one)
    assert weight.data_ptr() == own
    assert other.get_buffer("table").data_ptr() == one.get_buffer("table").data_ptr()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_tensors_of_other_types_keep_their_bytes(dtype: torch.dtype) -> None:
    values = torch.randn(3, LEAST_BYTES).mul(40).to(dtype)
    expected = values.clone()
    map_tensors([values])
    assert lies_in_a_file_without_a_name(values)
    assert (values.dtype, values.shape) == (dtype, expected.shape)
    assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8))
