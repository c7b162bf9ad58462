"""`calibration.device` on an emulated GPU: everything that meets there is there, and the numbers are those of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from calib.walk.activation_states import States
from ptqd_export.graph.checks.verify import oracle_outputs
from ptqd_export.measuring.calibration_device import CalibrationDevice
from ptqd_export.measuring.torch_backend import TorchBackend
from tests.emulated_device.emulated_torch import emulated_cuda

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

CUDA = "cuda:0"


def test_tensors_of_both_devices_do_not_mix() -> None:
    with emulated_cuda():
        there = torch.ones(2).to(CUDA)
        assert (there + 1).device == torch.device(CUDA)
        assert (there + 1).cpu().tolist() == [2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            _ = there + torch.ones(2)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.fixture
def feeds(small_build: Built) -> dict[str, Any]:
    states = States.load(small_build.stage("states") / "states.npz").first(3)
    return {"sample": states.samples, "timestep": states.timesteps, "class_labels": states.rows}


@pytest.mark.parametrize("precision", ["fp32", "w8a8"])
def test_torch_measures_there_what_it_measures_on_the_cpu(small_build: Built, feeds: dict[str, Any], precision: str) -> None:
    """States and conditions go up, the output comes down, and everything between runs there."""
    graph = small_build.graph(precision)
    expected = TorchBackend("cpu").open(graph, 3).run(feeds)
    with emulated_cuda() as mode:
        found = TorchBackend(CUDA).open(graph, 3).run(feeds)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(count for name, count in mode.ran.items() if "conv" in name) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_oracles_of_the_verification_compute_there_what_they_compute_on_the_cpu(small_build: Built, dtype: torch.dtype) -> None:
    states = States.load(small_build.stage("states") / "states.npz").first(3)
    layers, model = small_build.quantize("w8a8"), small_build.context.model
    expected = oracle_outputs(model, states, layers, dtype=dtype)
    with emulated_cuda() as mode:
        found = oracle_outputs(model, states, layers, dtype=dtype, device=CUDA)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(count for name, count in mode.ran.items() if "conv" in name) > 5


def test_network_and_inputs_of_the_observation_meet_there(small_build: Built) -> None:
    device, model = CalibrationDevice(CUDA), small_build.context.model
    inputs = model.example_inputs(2)
    with torch.no_grad(), emulated_cuda() as mode:
        device.check()
        found = device.place(model).adapter(*device.place_inputs(inputs))
        assert found.device == torch.device(CUDA)
        np.testing.assert_allclose(found.cpu().numpy(), model.adapter(*inputs).numpy(), atol=1e-5)
    assert sum(count for name, count in mode.ran.items() if "conv" in name) > 5
