"""The one inner convention for foreign models: `out = network(sample, timestep, *conditions)`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from engines.networks.conditioning import Conditioning
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.conditions import ConditionInput

if TYPE_CHECKING:
    from ptqd_export.models.text.prompts import PromptEncoder


class Adapter(nn.Module):
    """A foreign network behind the inner convention.

    `forward` takes the state [batch, channels, ...], the timestep [batch] float32 and the conditioning inputs in the order of
    `conditions`, and returns the raw output, shaped like the state. The network itself is `network`: layer names are relative to it.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.conditions = conditions

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        raise NotImplementedError  # each family has its own


class Decoder(nn.Module):
    """A first stage behind one convention: `forward` takes the states that a chain ends with, [B, *sample_shape], the scaling of latents
    not yet undone, and returns images [B, 1 or 3, H, W] in [-1, 1]."""

    def forward(self, states: Tensor) -> Tensor:
        raise NotImplementedError  # each kind of first stage has its own

    def example_states(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """States of this shape to trace and compare with; always the same."""
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Declaration:
    """What a model's configuration says, before any weight is read.

    Attributes:
        family: what kind of model it is, for people.
        sample_shape: of one state, [channels, ...].
        inputs: what it is conditioned on, in the order of the adapter's conditions.
        noise_schedule: from the model's scheduler configuration.
        sampler: that this scheduler is, a key of `engines.samplers.SAMPLERS`.
    """

    family: str
    sample_shape: tuple[int, ...]
    inputs: tuple[ConditionInput, ...]
    noise_schedule: NoiseSchedule
    sampler: str = "ddim"

    @property
    def null_class(self) -> int | None:
        """The label that means "no class" unless a plan says otherwise: the last. None where other things than a class condition it."""
        labels = [one.labels for one in self.inputs]
        return labels[0] - 1 if len(labels) == 1 and labels[0] is not None else None


@dataclass(frozen=True)
class ModelModules:
    """A model's weights in modules.

    Attributes:
        adapter: the denoiser.
        decoder: from states to images; None where the states are images.
    """

    adapter: Adapter
    decoder: Decoder | None = None


class Family(Protocol):
    """How models of one kind are read; each is a module of this package, and a line in `ptqd_export.models.load`."""

    def declare(self, path: Path) -> Declaration:
        """What the model at `path` is, from configuration files alone."""
        ...

    def load(self, path: Path, declared: Declaration) -> ModelModules:
        """The modules of what was declared, in float32."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be traced and calibrated.

    Attributes:
        family: what kind of model it is, for people.
        adapter: the network.
        sample_shape: of one state, [channels, ...].
        conditioning: its table, or None.
        null_class: the class label that means "no class", where conditioning is by class.
        noise_schedule: from the model's scheduler configuration.
        decoder: from states to images; None where the states are images.
        prompts: what turns prompts into conditions, where the plan asks for it.
        files: everything that it was read from.
    """

    family: str
    adapter: Adapter
    sample_shape: tuple[int, ...]
    conditioning: Conditioning | None
    null_class: int | None
    noise_schedule: NoiseSchedule
    decoder: Decoder | None = None
    prompts: PromptEncoder | None = None
    files: tuple[Path, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.adapter.parameters())

    def with_network(self, network: nn.Module) -> LoadedModel:
        """The same model around another network with the same inputs and output."""
        adapter = copy.copy(self.adapter)
        adapter._modules = {**adapter._modules, "network": network}  # a shallow copy shares the dict of children
        return replace(self, adapter=adapter)

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Random states, timesteps spread over the training range, and rows of the conditioning table; always the same."""
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(batch, *self.sample_shape, generator=generator)
        timestep = torch.linspace(0, self.noise_schedule.num_train_timesteps - 1, batch).floor()
        if self.conditioning is None:
            return sample, timestep
        rows = torch.arange(batch) % self.conditioning.rows
        return sample, timestep, *(torch.from_numpy(table)[rows] for table in self.conditioning.tables.values())
