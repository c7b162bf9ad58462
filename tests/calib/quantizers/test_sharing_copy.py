from __future__ import annotations

import pytest
import torch
from torch import nn

from calib.quantizers.sharing_copy import sharing_copy


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()


def test_a_copy_computes_the_same_from_the_same_memory(network: nn.Sequential) -> None:
    copied = sharing_copy(network)
    x = torch.randn(5, 3)
    torch.testing.assert_close(copied(x), network(x), rtol=0, atol=0)
    for name, parameter in network.named_parameters():
        assert copied.get_parameter(name) is not parameter
        assert copied.get_parameter(name).data_ptr() == parameter.data_ptr()
    for name, buffer in network.named_buffers():
        assert copied.get_buffer(name) is not buffer
        assert copied.get_buffer(name).data_ptr() == buffer.data_ptr()


def test_what_is_done_to_a_copy_leaves_the_network_as_it_is(network: nn.Sequential) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copied = nn.Module.to(sharing_copy(network), torch.float64)
    copied.get_submodule("0").register_parameter("bias", None)
    assert copied.get_parameter("0.weight").dtype == torch.float64
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) and value.dtype == before[name].dtype for name, value in network.state_dict().items())


def test_parameters_that_it_does_without_are_empty(network: nn.Sequential) -> None:
    copied = sharing_copy(network, without={"0.weight"})
    assert {name for name, parameter in copied.named_parameters() if parameter.numel() == 0} == {"0.weight"}
    assert network.get_parameter("0.weight").shape == (4, 3)


def test_modules_that_share_a_parameter_share_it_in_the_copy() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    copied = sharing_copy(network)
    assert copied.get_submodule("0").weight is copied.get_submodule("1").weight
