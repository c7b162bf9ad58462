"""The YAML beside a checkpoint: the arguments of CompVis' `LatentDiffusion`, under CompVis' own names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, ValidationError, model_validator

from engines.errors import PtqdError, UsageError
from engines.samplers.levels.noise_schedule import BetaSchedule, NoiseSchedule, PredictionType
from engines.untrusted.plain_text import read_text

UNCONDITIONAL = "__is_unconditional__"
SIZE_LIMIT = 2**20
"""Most bytes of a YAML file; those of the published models have a few thousand."""

_BETAS: dict[str, BetaSchedule] = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
"""CompVis names its schedules after the square root of beta: its `linear` is linear in that root."""

_PREDICTIONS: dict[str, PredictionType] = {"eps": "epsilon", "x0": "sample"}


class _Built(BaseModel):
    """Arguments of a class. An argument that is not listed, or has an unsupported value, is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UNetConfig(_Built):
    """Arguments of `UNetModel`."""

    image_size: int | None = None
    in_channels: PositiveInt
    out_channels: PositiveInt
    model_channels: PositiveInt
    attention_resolutions: tuple[int, ...]
    num_res_blocks: PositiveInt
    channel_mult: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: Literal[-1] = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: PositiveInt = 1
    context_dim: PositiveInt | None = None
    dropout: float = 0.0
    use_checkpoint: bool = False
    use_fp16: Literal[False] = False
    conv_resample: Literal[True] = True
    dims: Literal[2] = 2
    num_classes: None = None
    n_embed: None = None
    legacy: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.num_heads == -1) == (self.num_head_channels == -1):
            raise ValueError("either num_heads or num_head_channels")
        if self.use_spatial_transformer != (self.context_dim is not None):
            raise ValueError("context_dim if use_spatial_transformer is set, and only then")
        if self.use_spatial_transformer and (self.resblock_updown or self.use_scale_shift_norm):
            raise ValueError("no resblock_updown and no use_scale_shift_norm together with use_spatial_transformer")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels at every level."""
        return tuple(self.model_channels * factor for factor in self.channel_mult)

    def heads(self, channels: int) -> int:
        """Return the number of heads of an attention over `channels` channels."""
        return self.num_heads if self.num_head_channels == -1 else channels // self.num_head_channels

    def attends(self, level: int) -> bool:
        return 2**level in self.attention_resolutions


class AutoencoderConfig(_Built):
    """Arguments of a first stage's `Encoder` and `Decoder`."""

    z_channels: PositiveInt
    double_z: bool
    resolution: PositiveInt
    in_channels: PositiveInt
    out_ch: PositiveInt
    ch: PositiveInt
    ch_mult: tuple[PositiveInt, ...]
    num_res_blocks: PositiveInt
    attn_resolutions: tuple[int, ...] = ()
    dropout: float = 0.0
    attn_type: Literal["vanilla"] = "vanilla"
    use_linear_attn: Literal[False] = False
    resamp_with_conv: Literal[True] = True
    tanh_out: Literal[False] = False
    give_pre_end: Literal[False] = False

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * factor for factor in self.ch_mult)

    def attends(self, level: int) -> bool:
        return self.resolution // 2**level in self.attn_resolutions


class _FirstStageParams(BaseModel):
    """Arguments of a first stage. Arguments that are not listed concern only the training: losses, monitors, learning rates."""

    model_config = ConfigDict(frozen=True)

    embed_dim: PositiveInt
    ddconfig: AutoencoderConfig


class _VqParams(_FirstStageParams):
    n_embed: PositiveInt
    remap: None = None


class VqConfig(BaseModel):
    target: Literal["ldm.models.autoencoder.VQModelInterface"]
    params: _VqParams


class KlConfig(BaseModel):
    target: Literal["ldm.models.autoencoder.AutoencoderKL"]
    params: _FirstStageParams

    @model_validator(mode="after")
    def _square(self) -> Self:
        if not self.params.ddconfig.double_z or self.params.embed_dim != self.params.ddconfig.z_channels:
            raise ValueError("double_z, and an embed_dim equal to z_channels")
        return self


FirstStageConfig: TypeAlias = Annotated[VqConfig | KlConfig, Field(discriminator="target")]


class _Classes(_Built):
    embed_dim: PositiveInt
    n_classes: PositiveInt = 1000
    key: str = "class"

    @property
    def null_class(self) -> int | None:
        """The last class, as in CompVis' own sampling script for ImageNet. None for the default number, which leaves no room for it."""
        return self.n_classes - 1 if "n_classes" in self.model_fields_set else None


class ClassEmbedderConfig(BaseModel):
    target: Literal["ldm.modules.encoders.modules.ClassEmbedder"]
    params: _Classes


class _UNetSection(BaseModel):
    target: Literal["ldm.modules.diffusionmodules.openaimodel.UNetModel"]
    params: UNetConfig


def _kind_of_condition(value: Any) -> str:
    return "none" if isinstance(value, str) else "classes"


ConditionConfig: TypeAlias = Annotated[
    Annotated[Literal["__is_unconditional__"], Tag("none")] | Annotated[ClassEmbedderConfig, Tag("classes")],
    Discriminator(_kind_of_condition),
]


class DiffusionConfig(BaseModel):
    """Arguments of `LatentDiffusion`. Arguments that are not listed concern only the training."""

    model_config = ConfigDict(frozen=True)

    image_size: PositiveInt
    channels: PositiveInt
    timesteps: PositiveInt = 1000
    linear_start: float = 1e-4
    linear_end: float = 2e-2
    beta_schedule: Literal["linear", "sqrt_linear", "cosine"] = "linear"
    cosine_s: Annotated[float, Field(ge=0.008, le=0.008)] = 0.008
    given_betas: None = None
    parameterization: Literal["eps", "x0"] = "eps"
    learn_logvar: bool = False
    use_ema: bool = True
    scale_factor: float = 1.0
    scale_by_std: bool = False
    unet_config: _UNetSection
    first_stage_config: FirstStageConfig
    cond_stage_config: ConditionConfig

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        unet, classes = self.unet_config.params, self.classes
        if not unet.in_channels == unet.out_channels == self.channels == self.first_stage_config.params.embed_dim:
            raise ValueError("channels, and in_channels and out_channels of the U-Net, equal to the first stage's embed_dim")
        if unet.context_dim != (None if classes is None else classes.embed_dim):
            raise ValueError("a ClassEmbedder whose embed_dim equals the U-Net's context_dim, or neither")
        return self

    @property
    def classes(self) -> _Classes | None:
        return None if isinstance(self.cond_stage_config, str) else self.cond_stage_config.params

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The noise schedule, with the timesteps of the original DDIM sampler: every `timesteps / steps`-th, plus one."""
        return NoiseSchedule(
            num_train_timesteps=self.timesteps,
            beta_start=self.linear_start,
            beta_end=self.linear_end,
            beta_schedule=_BETAS[self.beta_schedule],
            prediction_type=_PREDICTIONS[self.parameterization],
            steps_offset=1,
            clip_sample=False,
            set_alpha_to_one=False,
        )


class _Model(BaseModel):
    target: Literal["ldm.models.diffusion.ddpm.LatentDiffusion"]
    params: DiffusionConfig


class _File(BaseModel):
    model: _Model


def read_config(path: Path) -> DiffusionConfig:
    """Read a YAML file of CompVis' repository. It is parsed as data, and no class that it names is imported.

    Raises:
        UsageError: the file describes a model that is not supported; the message names the argument.
        PtqdError: the file is not YAML.
    """
    import yaml

    try:
        text = read_text(path, SIZE_LIMIT)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("contains aliases: a few lines of them can expand to a billion values")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise PtqdError("The model's configuration cannot be read.", found=f"{path}: {error}", expected="YAML") from error
    try:
        return _File.model_validate(content).model.params
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            "The model's configuration is not supported.",
            found=f"{path}: {'.'.join(str(part) for part in first['loc'])} = {first['input']!r}"[:300],
            expected=first["msg"],
            mend="docs/checkpoints.md lists the supported models",
        ) from error
