"""The section `quantization`: how scales and integers are found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from calib.quantizers.rules.precision import AttentionForm, Precision
from engines.untrusted.limits import BATCH, CHAIN_STEPS, ROWS
from ptqd_export.plan.section import Section


class ReconstructionSection(Section):
    """Settings of learned rounding and of adapters; used where the plan asks for either."""

    samples: int = Field(
        default=256, ge=1, le=ROWS, description="number of states, drawn across the timesteps, that each layer or block is fitted to"
    )
    iterations: int = Field(default=500, ge=1, le=ROWS, description="number of optimizer steps for each layer or block")
    batch_size: int = Field(default=16, ge=1, le=BATCH, description="number of states in one optimizer step")
    activation_scales: bool = Field(default=True, description="learn the scales of the activations too")
    memory_gib: float = Field(
        default=4.0, gt=0, description="most memory, in GiB, for the stored inputs and outputs of blocks; what does not fit goes to files"
    )


class QuantizationSection(Section):
    """How scales and integers are found, and which layers are exempt."""

    weight_scale: Literal["mse", "max"] = Field(
        default="mse",
        description="scale of a weight channel: from the least squared error of the layer's output, or from the largest value",
    )
    weight_group: Literal[32, 64, 128] | None = Field(
        default=None,
        description="number of input channels that share a scale, in weights of at most 4 bits in linear layers with float activations; "
        "null: one scale for each output channel",
    )
    activation_scale: Literal["mse", "max"] = Field(
        default="mse",
        description="scale of an activation: from the least squared error of outputs of layers that read it, or from the largest value",
    )
    rounding: Literal["nearest", "layer", "block"] = Field(
        default="nearest",
        description="nearest; or learned, so that the output of each layer (AdaRound) or of each block (BRECQ) changes least",
    )
    adapters: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="rank of adapters that are tuned, block by block, so that the quantized network follows the one in float, and merged "
        "into the weights before these are rounded; null: no adapters",
    )
    reconstruction: ReconstructionSection = Field(
        default=ReconstructionSection(), description="settings of learned rounding and of adapters"
    )
    attention: AttentionForm = Field(
        default="float",
        description="what the products of attention compute with, at precisions with quantized activations: float, 8-bit floats (fp8) or "
        "8-bit integers (int8)",
    )
    split_concatenations: bool = Field(
        default=False, description="quantize the parts of a concatenated input separately (skip connections of a U-Net)"
    )
    low_rank: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="rank of a branch in float beside linear layers with quantized activations, at precisions of fewer than 8 bits; "
        "null: no branches",
    )
    channel_scaling: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="move outlier channels from activations into weights, with this exponent (0.5 is usual); null turns this off",
    )
    rotation: Literal["none", "folded", "hadamard"] = Field(
        default="none",
        description="rotate blocks of the inputs of linear layers by a Hadamard matrix, so that outliers are spread over their block: only "
        "where the weights of the layer before can do it (folded), or everywhere, elsewhere at run time (hadamard)",
    )
    activation_steps: Literal["all", "used"] = Field(
        default="all",
        description="fit a precision's activation ranges on the states of all steps, or only of the steps that a fixed policy gives to it",
    )
    step_groups: Annotated[int, Field(ge=1, le=CHAIN_STEPS)] | Literal["auto"] = Field(
        default=1,
        description="number of groups of neighbouring steps with activation ranges of their own, which share the integer weights; "
        '"auto": each precision gets the groups that are worth an engine by the noise that the build measures',
    )
    keep_float: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="patterns with * and ? for the names of layers to keep in float"
    )
    keep_8bit_weights: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="patterns with * and ? for the names of layers whose weights have 8 bits at every precision"
    )
    float_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the layers' multiply-accumulates that may compute in float: the build measures how much noise each layer "
        "causes, and spends the share where it removes most",
    )
    keep_float_encoders: bool = Field(
        default=False, description="keep the weights of text encoders with more than 500 million parameters in float; else they have 8 bits"
    )
    integer_layers: Literal["all", "faster"] = Field(
        default="all",
        description="compute in integers wherever the target can, or only in layers where the build measures a speed-up on this machine",
    )

    def learns_rounding(self, precision: Precision) -> bool:
        """Whether the rounding of a precision is learned: that of integers alone."""
        return self.rounding != "nearest" and precision.form == "integer"

    def learns(self, precision: Precision) -> bool:
        """Whether anything of a precision's weights is learned."""
        return self.adapters is not None or self.learns_rounding(precision)
