"""Run a model as diffusers does: its own DDIM scheduler, the float32 network in PyTorch, and guidance as one batch of doubled size."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engines.arrays import Float32, Int64
from engines.errors import MissingBackendError
from engines.host.machine import cores
from ptqd_export.models.base import LoadedModel
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.load import load_model
from ptqd_export.models.places.model_place import find_place
from ptqd_export.plan import load_plan
from tools.bench.case import Case, Visited

COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class DiffusersRunner:
    """A `tools.bench.contestants.Runner` that uses diffusers and PyTorch.

    Attributes:
        case: case to sample.
        model: model, loaded in the way a build does.
        call: the model's network, plain or compiled.
        scheduler: diffusers' own scheduler in the model's configuration.
    """

    case: Case
    model: LoadedModel
    call: Callable[..., Tensor]
    scheduler: Any

    @classmethod
    def load(cls, case: Case, *, compiled: bool = False) -> DiffusersRunner:
        """Load the model of the case's plan.

        Raises:
            MissingBackendError: there is no C++ compiler for `torch.compile`.
        """
        from diffusers import DDIMScheduler

        if compiled:
            _check_compiler()
        torch.set_num_threads(cores())
        plan = load_plan(case.plan)
        model = load_model(plan)
        scheduler = DDIMScheduler.from_config(DiffusersFolder(find_place(str(plan.plan.model.path), plan.folder).path).scheduler)
        scheduler.set_timesteps(case.schedule.sampler.steps)
        return cls(case, model, torch.compile(model.adapter) if compiled else model.adapter, scheduler)

    @torch.inference_mode()
    def chain(self) -> object:
        x, eta = torch.randn(self.case.batch, *self.model.sample_shape), self.case.schedule.sampler.eta
        conditions = self._conditions(self.case.rows(np.arange(self.case.batch, dtype=np.int64)))
        for timestep in self._timesteps():
            x = self.scheduler.step(self._guided(x, timestep, conditions), timestep, x, eta=eta).prev_sample
        return x.numpy()

    @torch.inference_mode()
    def network(self) -> object:
        x = torch.zeros(self.case.batch, *self.model.sample_shape)
        return self._branches(x, 500.0, self._conditions(self.case.rows(np.arange(self.case.batch, dtype=np.int64))))

    @torch.inference_mode()
    def outputs(self, visited: Visited) -> Float32:
        conditions = self._conditions(visited.rows)
        calls = zip(visited.states, visited.timesteps, strict=True)
        return np.stack([self._branches(torch.from_numpy(x), timestep, conditions).numpy() for x, timestep in calls])

    def _timesteps(self) -> list[int]:
        """As many of the scheduler's timesteps as the case has steps, evenly spaced."""
        chosen = np.linspace(0, len(self.scheduler.timesteps) - 1, len(self.case.schedule.steps)).round().astype(np.int64)
        return [int(timestep) for timestep in self.scheduler.timesteps[chosen]]

    def _guided(self, x: Tensor, timestep: float, conditions: list[Tensor]) -> Tensor:
        out = self._branches(x, timestep, conditions)
        if not self.case.guided:
            return out
        conditional, unconditional = out.chunk(2)
        return unconditional + self.case.schedule.sampler.guidance * (conditional - unconditional)

    def _branches(self, x: Tensor, timestep: float, conditions: list[Tensor]) -> Tensor:
        rows = torch.cat([x, x]) if self.case.guided else x
        return self.call(rows, torch.full((len(rows),), float(timestep)), *conditions)

    def _conditions(self, rows: Int64) -> list[Tensor]:
        conditioning = self.model.conditioning
        feeds = {} if conditioning is None else conditioning.feeds(rows, guided=self.case.guided)
        return [torch.from_numpy(value) for value in feeds.values()]


def _check_compiler() -> None:
    wanted = (os.environ["CXX"],) if "CXX" in os.environ else COMPILERS
    if not any(shutil.which(name) for name in wanted):
        raise MissingBackendError("torch.compile needs a C++ compiler.", found="none", expected=" or ".join(wanted))
