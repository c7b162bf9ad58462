"""Device and type in which PyTorch runs the network during calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from calib.quantizers.sharing_copy import sharing_copy
from engines.errors import MissingBackendError
from ptqd_export.models.base import LoadedModel


@dataclass(frozen=True)
class CalibrationDevice:
    """The plan's `calibration.device` and `calibration.dtype`."""

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def check(self) -> None:
        """Raises MissingBackendError if PyTorch does not have the device."""
        if self.device == "mps":
            self._check_mps()
            return
        found = torch.cuda.device_count()
        if self.device != "cpu" and (torch.device(self.device).index or 0) >= found:
            raise MissingBackendError(
                "PyTorch does not have the calibration device.",
                found=f'calibration.device "{self.device}", and {found} CUDA devices',
                expected=" or ".join(["cpu", *(f"cuda:{index}" for index in range(found))]),
                mend='set calibration.device to "cpu", or install a PyTorch and a driver that find the device',
            )

    def _check_mps(self) -> None:
        if not torch.backends.mps.is_available():
            raise MissingBackendError(
                "PyTorch does not have the calibration device.",
                found='calibration.device "mps", and no Metal device',
                expected="a Mac with Apple silicon",
                mend='set calibration.device to "cpu"',
            )

    def place(self, model: LoadedModel) -> LoadedModel:
        """Return the model with a copy of its network on the device; the model itself if nothing changes."""
        if (self.device, self.dtype) == ("cpu", "float32"):
            return model
        network = nn.Module.to(sharing_copy(model.adapter.network), self.device, self._dtype)  # diffusers' own `to` warns about casts
        return model.with_network(network)

    def place_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Moves a batch of the network's inputs to the device. Timesteps stay in float32, because bfloat16 would merge neighbours."""
        sample, timestep, *conditions = (value.to(self.device) for value in inputs)
        cast = (value.to(self._dtype) if value.is_floating_point() else value for value in (sample, *conditions))
        return next(cast), timestep, *cast

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
