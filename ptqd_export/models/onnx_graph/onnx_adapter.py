"""Calls a graph's network as every network is called here: a state of unit variance, a training timestep, and the conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_levels import noise_levels
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.base import Adapter
from ptqd_export.models.conditions import IMAGE
from ptqd_export.models.onnx_graph.graph_module import GraphModule
from ptqd_export.plan.graph_section import Preconditioning, StateForm, TimeUnit


@dataclass(frozen=True)
class Convention:
    """How a graph takes states and times.

    Attributes:
        schedule: noise schedule.
        time_unit: what the time input takes.
        state_form: form of the state that the graph, or the preconditioning around it, takes.
        preconditioning: factors around the graph; None if there are none.
        sigma_data: standard deviation of the data in these factors.
        negative: whether the graph returns the negative of what the factors are for.
    """

    schedule: NoiseSchedule
    time_unit: TimeUnit
    state_form: StateForm
    preconditioning: Preconditioning | None = None
    sigma_data: float = 0.5
    negative: bool = False

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the noise levels at training timesteps, which may lie between two."""
        schedule = self.schedule
        if schedule.prediction_type == "flow":
            return timestep / schedule.num_train_timesteps
        if schedule.sigma_min is not None and schedule.sigma_max is not None:
            factor = math.log(schedule.sigma_max / schedule.sigma_min) / (schedule.num_train_timesteps - 1)
            return schedule.sigma_min * torch.exp(factor * timestep)
        logs = torch.from_numpy(np.log(noise_levels(alpha_bar(schedule)))).to(timestep)
        below = timestep.floor().clamp(0, len(logs) - 2)
        at = below.long()
        return torch.exp(torch.lerp(logs[at], logs[at + 1], timestep - below))

    def time(self, timestep: Tensor) -> Tensor:
        """Return what the graph's time input takes."""
        match self.time_unit:
            case "timestep":
                return timestep
            case "fraction":
                return timestep / self.schedule.num_train_timesteps
            case "sigma":
                return self.sigma(timestep)
            case "log_sigma":
                return self.sigma(timestep).log()
            case "c_noise":
                return self.sigma(timestep).log() / 4
            case "c_noise_1000":
                return self.sigma(timestep).log() * 250

    def factors(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `c_in`, `c_skip` and `c_out` at noise levels: Karras et al. 2022, arXiv 2206.00364, table 1; those of a consistency model
        (Song et al. 2023, arXiv 2303.01469, appendix C) are 1 and 0 at the lowest level.
        """
        data = self.sigma_data
        c_in = torch.rsqrt(sigma**2 + data**2)
        if self.preconditioning == "edm":
            return c_in, data**2 * c_in**2, (-1 if self.negative else 1) * sigma * data * c_in
        above = sigma - float(self.schedule.sigma_min or 0.0)
        return c_in, data**2 / (above**2 + data**2), above * data * c_in


class OnnxAdapter(Adapter):
    """Calls a graph.

    Args:
        network: the graph; its inputs are the state, the time, the conditions, and the constants.
        conditions: type in the graph of each condition; the last may be an image that is appended to the state.
        convention: how the graph takes states and times.
        constants: values of the other inputs, and whether they are repeated for every row.
        time_axes: axes of the time in the graph: 2 if it is [batch, 1]; a single number has one here too.
    """

    def __init__(
        self,
        network: GraphModule,
        conditions: Mapping[str, str],
        convention: Convention,
        constants: Sequence[tuple[Tensor, bool]] = (),
        time_axes: int = 1,
    ) -> None:
        super().__init__(network, tuple(conditions))
        self._kinds = tuple(conditions.values())
        self.convention = convention
        self._constants = tuple(constants)
        self._time_axes = time_axes

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        inputs = self.graph_inputs(sample, timestep, *conditions)
        out: Tensor = self.network(*inputs)[:, : sample.shape[1]]
        if self.convention.preconditioning is None:
            return out
        sigma = _per_sample(self.convention.sigma(timestep.to(sample.dtype)), sample)
        _, c_skip, c_out = self.convention.factors(sigma)
        return c_skip * (sample * torch.sqrt(1 + sigma**2)) + c_out * out

    def graph_inputs(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Return what the graph is called with."""
        timestep = timestep.to(sample.dtype)
        state = sample
        if self.convention.state_form == "added":
            sigma = _per_sample(self.convention.sigma(timestep), sample)
            state = sample * torch.sqrt(1 + sigma**2)
            if self.convention.preconditioning is not None:
                state = state * self.convention.factors(sigma)[0]
        if IMAGE in self.conditions:
            *conditions, image = conditions  # type: ignore[assignment]  # the rest of a tuple is a list
            state = torch.cat([state, image], dim=1)
        cast = (_cast(value, kind, sample) for value, kind in zip(conditions, self._kinds, strict=False))
        constants = (_constant(value, sample, repeated=repeated) for value, repeated in self._constants)
        time = self.convention.time(timestep)
        return state, time.reshape(-1, *[1] * (self._time_axes - 1)), *cast, *constants


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _cast(value: Tensor, kind: str, like: Tensor) -> Tensor:
    if kind == "BOOL":
        return value.bool()
    return value.long() if kind.startswith(("INT", "UINT")) else value.to(like.dtype)


def _constant(value: Tensor, like: Tensor, *, repeated: bool) -> Tensor:
    value = value.to(like) if value.is_floating_point() else value.to(like.device)
    return value.expand(like.shape[0], *value.shape[1:]) if repeated else value
