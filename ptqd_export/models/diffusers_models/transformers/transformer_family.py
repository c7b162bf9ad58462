"""What differs between the transformers of diffusers: a row of the table of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn

from engines.samplers.few_steps import FEW
from engines.samplers.levels.noise_schedule import LastSigma
from ptqd_export.models.conditions import ConditionInput
from ptqd_export.models.diffusers_models.transformers.frame import Frame
from ptqd_export.models.text.text_use import TextUse

Config: TypeAlias = Mapping[str, Any]
Named: TypeAlias = Mapping[str, Tensor]


class TimestepMap(NamedTuple):
    """The timestep that a network is given, `scale * t + offset`, for the training timestep `t` of a sampler."""

    scale: float = 1.0
    offset: float = 0.0


class PipelineGuidance(NamedTuple):
    """How a pipeline is asked for classifier-free guidance: by the argument `name`, which is `offset` more than the scale w here."""

    name: str = "guidance_scale"
    offset: float = 0.0


AS_HERE = PipelineGuidance()


class Usual(NamedTuple):
    """The settings with which a family's pipeline samples."""

    steps: int
    guidance: float


DISTILLED = Usual(FEW, 1.0)


class Stated(NamedTuple):
    """What the files of a pipeline say: the transformer's configuration, `model_index.json`, and the scheduler's configuration."""

    network: Config
    pipeline: Config
    scheduler: Config


@dataclass(frozen=True)
class TransformerFamily:
    """A row of the table: how a class of transformers is called, and what its pipeline does around it.

    Attributes:
        conditions: inputs besides state and timestep, under the names of the network's own arguments.
        usual: steps and guidance of the pipeline, given what its files say.
        distilled: steps and guidance of models that were distilled for few steps, and are recognised by scheduler or name.
        patch: key of the configuration with the side of a token in latents, or that side.
        layout: whether the network takes latents [B, C, ...], or patches packed into tokens [B, tokens, C * patch ** axes].
        timestep: maps the sampler's timestep to the one that the network takes.
        negated: whether the network predicts the opposite of what the pipeline's scheduler takes.
        size: side of the latents where the configuration has no `sample_size`.
        pixels: pixels per latent along each side, in a folder without a first stage.
        last_sigma: where the pipeline lets a flow's levels end before their shift.
        mu_of_steps: whether the pipeline's dynamic shift depends on the number of steps too.
        texts: how the pipeline uses its text encoders, given the configuration and the class name of the pipeline; empty if prompts are not
            supported.
        listed: whether the pipeline gives states as a list of [C, 1, *sides], and embeddings as a list of [tokens, width] without padding.
        axes_behind: axes of the positions that a pipeline gives, behind those of the grid.
        pipeline_guidance: how the pipeline is asked for classifier-free guidance.
        extra: further arguments of the network, which follow from the sizes; None if there are none.
        prepare: changes the network for the sizes when it is loaded, where its own code cannot be traced as it is; None if it can.
        keeps_norm: whether the pipeline scales the guided output back to the norm of the conditional one, token by token.
        note: what the user should know before a build; empty if there is nothing.
        unmarked: what to check if the model was not recognised as one of few steps; empty if its files always tell.
    """

    conditions: Callable[[Config], tuple[ConditionInput, ...]]
    usual: Callable[[Stated], Usual]
    distilled: Usual = DISTILLED
    patch: str | int = "patch_size"
    layout: Literal["latents", "tokens"] = "latents"
    timestep: Callable[[Config], TimestepMap] = lambda _: TimestepMap()
    negated: bool = False
    size: int | None = None
    pixels: int = 8
    last_sigma: LastSigma = "timestep"
    mu_of_steps: bool = False
    texts: Callable[[Config, str | None], tuple[TextUse, ...]] = lambda *_: ()
    listed: bool = False
    axes_behind: int = 0
    pipeline_guidance: PipelineGuidance = AS_HERE
    extra: Callable[[Frame, Named], Mapping[str, Any]] | None = None
    prepare: Callable[[nn.Module, Frame], None] | None = None
    keeps_norm: bool = False
    note: str = ""
    unmarked: str = ""

    def side(self, config: Config) -> int:
        """Return the side of a token in latents."""
        return int(config[self.patch]) if isinstance(self.patch, str) else self.patch

    def channels(self, config: Config, axes: int = 2) -> int:
        """Return the channels of the latents."""
        inputs = int(config["in_channels"])
        return inputs if self.layout == "latents" else inputs // self.side(config) ** axes
