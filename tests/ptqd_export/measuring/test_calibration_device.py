"""Where calibration runs: a device that is not there is an error of its own, and timesteps keep their precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from engines.errors import MissingBackendError
from ptqd_export.measuring.calibration_device import CalibrationDevice
from ptqd_export.models.base import LoadedModel
from ptqd_export.stages.run_build import run_build

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.mark.parametrize(("device", "found"), [("cuda", 0), ("cuda:1", 1), ("cuda:0", 0)])
def test_missing_device_is_told_with_what_there_is(device: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(MissingBackendError, match="does not have the calibration device") as error:
        CalibrationDevice(device).check()
    assert error.value.exit_code == 3
    assert f"{found} CUDA devices" in str(error.value)
    assert 'set calibration.device to "cpu"' in str(error.value)


@pytest.mark.parametrize(("device", "found"), [("cpu", 0), ("cuda", 1), ("cuda:1", 2)])
def test_device_that_is_there_passes(device: str, found: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    CalibrationDevice(device).check()


@pytest.mark.parametrize("there", [True, False])
def test_metal_is_there_or_told(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    if there:
        CalibrationDevice("mps").check()
    else:
        with pytest.raises(MissingBackendError, match="no Metal device"):
            CalibrationDevice("mps").check()


def test_build_writes_nothing_where_the_device_is_missing(class_build: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    plan = class_build.plan_file.plan
    changed = plan.model_copy(update={"calibration": plan.calibration.model_copy(update={"device": "cuda"})})
    with pytest.raises(MissingBackendError, match="does not have the calibration device"):
        run_build(replace(class_build.plan_file, plan=changed, output=tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


class Noted(nn.Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.dtype = torch.float64

    def forward(self, x: Tensor) -> Tensor:
        self.dtype = x.dtype
        out: Tensor = self.conv(x)
        return out


def test_network_is_placed_as_a_copy(as_model: Callable[[nn.Module, tuple[int, ...]], LoadedModel]) -> None:
    model = as_model(Noted(), (1, 2, 2))
    assert CalibrationDevice().place(model) is model
    placed = CalibrationDevice("cpu", "bfloat16").place(model)
    inputs = CalibrationDevice("cpu", "bfloat16").place_inputs(model.example_inputs(2))
    with torch.no_grad():
        placed.adapter(*inputs)
    network = placed.adapter.network
    assert isinstance(network, Noted)
    assert (network.dtype, network.conv.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert model.adapter.network.get_parameter("conv.weight").dtype == torch.float32
    assert model.adapter.network is not network


def test_inputs_are_cast_but_timesteps_and_labels_are_not() -> None:
    inputs = (torch.zeros(2, 1), torch.tensor([998.0, 999.0]), torch.tensor([1, 2]), torch.zeros(2, 3))
    sample, timestep, labels, embeddings = CalibrationDevice("cpu", "bfloat16").place_inputs(inputs)
    assert (sample.dtype, embeddings.dtype, labels.dtype) == (torch.bfloat16, torch.bfloat16, torch.int64)
    assert timestep.tolist() == [998.0, 999.0]
