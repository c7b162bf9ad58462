"""The interface that every model is adapted to: `out = network(sample, timestep, *conditions)`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.arrays import Float32, Int64
from engines.networks.conditioning import Conditioning
from engines.networks.control import STATE, Control
from engines.networks.embeddings import TIMESTEP
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.models.conditions import GUIDANCE, IMAGE, TIMESTEP_COND, ConditionInput

if TYPE_CHECKING:
    from ptqd_export.models.text.prompts import PromptEncoder
    from ptqd_export.models.text.text_use import TextUse


class Adapter(nn.Module):
    """Wraps a model's own network in the common interface.

    `forward` takes the state [batch, channels, ...], the timestep [batch] float32 and the conditioning inputs in the order of
    `conditions`, and returns the raw output, shaped like the state. `network` is the wrapped network: layer names are relative to it.
    """

    network: nn.Module

    def __init__(self, network: nn.Module, conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.conditions = conditions

    def forward(self, sample: Tensor, timestep: Tensor, *conditions: Tensor) -> Tensor:
        raise NotImplementedError  # each family implements its own


class DecoderModule(nn.Module):
    """Wraps a first stage's decoder in a common interface.

    `forward` takes the final states of a chain [B, *sample_shape], undoes the scaling of latents, and returns images [B, 1 or 3, H, W] in
    [-1, 1].
    """

    def forward(self, states: Tensor) -> Tensor:
        raise NotImplementedError  # each kind of first stage implements its own

    def example_states(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """Return states [batch, *shape] for tracing and comparing; the same on every call."""
        return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


class EncoderModule(nn.Module):
    """Wraps a first stage's encoder in a common interface.

    `forward` takes images [B, 1 or 3, H, W] in [-1, 1], and returns the clean states [B, *sample_shape] of chains that end at them.
    """

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError  # each kind of first stage implements its own

    def example_images(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """Return images [batch, *shape] for tracing and comparing; the same on every call."""
        return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@dataclass(frozen=True)
class Declaration:
    """What a model's configuration says, before any weights are read.

    Attributes:
        family: kind of model, for people to read.
        sample_shape: shape of one state, [channels, ...].
        inputs: conditioning inputs, in the order of the adapter's conditions.
        noise_schedule: noise schedule in the model's scheduler configuration.
        sampler: sampler of that scheduler, a key of `engines.samplers.SAMPLERS`.
        notes: what the user should know before a build: where the model's own pipeline does something else.
        steps: steps that the model's pipeline takes; None if that is not known.
        guidance: guidance scale of the model's pipeline; None if that is not known.
        takes_prompts: whether text encoders beside the network can be used; else the conditions are prepared embeddings.
        guidance_patch: side of the patches in which guidance keeps the norm of the conditional output; None if guidance is linear.
        texts: how the pipeline uses its text encoders; empty if that follows from the inputs, as for U-Nets.
        control: residuals of a control network, behind the inputs in the adapter's conditions.
    """

    family: str
    sample_shape: tuple[int, ...]
    inputs: tuple[ConditionInput, ...]
    noise_schedule: NoiseSchedule
    sampler: str = "ddim"
    notes: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    takes_prompts: bool = True
    guidance_patch: int | None = None
    texts: tuple[TextUse, ...] = ()
    control: tuple[ConditionInput, ...] = ()

    @property
    def repaints(self) -> bool:
        """Whether the network takes a mask and the latents of the masked picture beside the state: inpainting with further channels."""
        wanted = (self.sample_shape[0] + 1, *self.sample_shape[1:])
        return any((one.name, one.shape) == (IMAGE, wanted) for one in self.inputs)

    @property
    def asked(self) -> tuple[ConditionInput, ...]:
        """The inputs whose values the plan gives as a table."""
        return tuple(one for one in self.inputs if one.name not in (GUIDANCE, TIMESTEP_COND))

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, in place of classifier-free guidance."""
        return len(self.asked) < len(self.inputs)

    @property
    def null_class(self) -> int | None:
        """The label for "no class" that the model declares. None unless a class label is the only condition."""
        return self.inputs[0].null_class if len(self.inputs) == 1 else None


@dataclass(frozen=True)
class ModelModules:
    """A model's modules with their weights.

    Attributes:
        adapter: the denoiser.
        decoder: turns states into images; None if the states are images.
    """

    adapter: Adapter
    decoder: DecoderModule | None = None


class Family(Protocol):
    """Reads models of one kind. Each family is a module of this package and an entry in `ptqd_export.models.load`."""

    def declare(self, path: Path, size: tuple[int, int] | None = None) -> Declaration:
        """Describe the model at `path` from its configuration files alone.

        Args:
            path: folder or file of the model.
            size: height and width of the images in pixels; None takes the model's own.

        Raises:
            UsageError: the model cannot have this size.
        """
        ...

    def load(self, path: Path, declared: Declaration) -> ModelModules:
        """Load the modules of the declared model, in float32."""
        ...


@dataclass(frozen=True)
class ControlPart:
    """A control network with its weights.

    Attributes:
        module: returns the residuals of each row behind each other, float32 [batch, values].
        inputs: inputs of the module, in its order.
        pixels: uint8 [K, H, W, C], the control images of the calibration.
        files: all files that it was read from.
    """

    module: nn.Module
    inputs: tuple[ConditionInput, ...]
    pixels: NDArray[np.uint8]
    files: tuple[Path, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of a control image, [channels, height, width]."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width

    def example_inputs(self, batch: int) -> dict[str, Tensor]:
        """Return inputs for tracing and comparing, by name; the same on every call."""
        generator = torch.Generator().manual_seed(0)
        return {one.name: torch.rand(batch, *map(int, one.shape), generator=generator) for one in self.inputs}


@dataclass(frozen=True)
class PreviewPart:
    """A small decoder for previews, and all files that it was read from."""

    module: DecoderModule
    files: tuple[Path, ...]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be traced and calibrated.

    Attributes:
        family: kind of model, for people to read.
        adapter: the denoiser.
        sample_shape: shape of one state, [channels, ...].
        conditioning: conditioning table; None for an unconditional model.
        null_class: class label that means "no class"; None unless the model is conditioned on a class.
        noise_schedule: noise schedule in the model's scheduler configuration.
        decoder: turns states into images; None if the states are images.
        encoder: turns images into states; None if the plan asks for none.
        preview: decodes previews along a chain; None if the plan names no such decoder. Its files are not among `files`.
        prompts: turns prompts into conditions; None if the plan has no prompts.
        embeds_guidance: whether a condition is the guidance scale, in place of classifier-free guidance.
        guidance_patch: see `Declaration`.
        files: all files that the model was read from.
        control: residuals of a control network while the model is calibrated; None if the network takes none.
        control_part: the control network that computes them; None if they are zeros.
    """

    family: str
    adapter: Adapter
    sample_shape: tuple[int, ...]
    conditioning: Conditioning | None
    null_class: int | None
    noise_schedule: NoiseSchedule
    decoder: DecoderModule | None = None
    encoder: EncoderModule | None = None
    preview: PreviewPart | None = None
    prompts: PromptEncoder | None = None
    embeds_guidance: bool = False
    guidance_patch: int | None = None
    files: tuple[Path, ...] = ()
    control: Control | None = None
    control_part: ControlPart | None = None

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.adapter.parameters())

    def with_network(self, network: nn.Module) -> LoadedModel:
        """Return the same model with another network, which must have the same inputs and output."""
        adapter = copy.copy(self.adapter)
        adapter._modules = {**adapter._modules, "network": network}  # a shallow copy shares the dict of children
        return replace(self, adapter=adapter)

    def example_inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Return random states, timesteps spread over the training range, and rows of the conditioning table; the same on every call."""
        generator = torch.Generator().manual_seed(0)
        sample = torch.randn(batch, *self.sample_shape, generator=generator)
        timestep = torch.linspace(0, self.noise_schedule.num_train_timesteps - 1, batch).floor()
        if self.conditioning is None:
            return sample, timestep
        rows = torch.arange(batch) % self.conditioning.rows
        conditions = (torch.from_numpy(np.ascontiguousarray(table))[rows] for table in self.conditioning.tables.values())
        residuals = () if self.control is None else self.control.inputs
        return sample, timestep, *conditions, *(torch.randn(batch, *one.shape, generator=generator) for one in residuals)

    def feeds(self, samples: Float32, timesteps: Float32, rows: Int64, *, guided: bool) -> dict[str, NDArray[Any]]:
        """Return the network's inputs by name, in the order in which the adapter takes them.

        Args:
            samples: states [batch, channels, ...].
            timesteps: their timesteps [batch].
            rows: their rows of the conditioning table [batch].
            guided: return both branches of guidance, the conditional half first.
        """
        branches = 2 if guided else 1
        state, timestep = (np.concatenate([value] * branches) for value in (samples, timesteps))
        conditions = {} if self.conditioning is None else self.conditioning.feeds(rows, guided=guided)
        residuals = {} if self.control is None else self.control.feeds(state, timestep, conditions, rows)
        return {STATE: state, TIMESTEP: timestep, **conditions, **residuals}
