"""The decoder of a latent model's first stage, with the scaling of the latents folded in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.errors import UsageError
from ptqd_export.models.base import DecoderModule
from ptqd_export.models.diffusers_folder import DiffusersFolder
from ptqd_export.models.known_keys import check_keys

UNSCALED_PIPELINES = ("LDMSuperResolutionPipeline",)
"""Pipelines that decode latents without scaling, whatever factor the first stage's configuration has (it has one by default)."""

FIRST_STAGE_PARTS = ("vae", "vqvae", "movq")
"""Names that pipelines give to their first stage."""

STATISTICS = ("latents_mean", "latents_std")
"""Mean and standard deviation of each channel of the latents."""

CHANNELS = ("vq_embed_dim", "latent_channels", "z_dim")
"""Names of the number of channels of the latents; the first that a configuration states."""

BLOCKS = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
"""Keys of a first stage whose length is one more than how often it halves the sides."""

PerChannel: TypeAlias = float | Sequence[float]
"""One value for all channels of the latents, or one for each."""


class KlDecoder(DecoderModule):
    """Computes `decode(states / scale + shift)` with an autoencoder whose decoder takes the latents as they are.

    Args:
        first_stage: the autoencoder; its encoder is dropped.
        scale: factor by which latents were multiplied for the denoiser.
        shift: value that was subtracted from latents before the multiplication.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, first_stage: nn.Module, scale: PerChannel, shift: PerChannel = 0.0) -> None:
        super().__init__()
        self.first_stage = without_parts(first_stage, "encoder", "quant_conv")
        self.register_buffer("scale", scale_column(scale), persistent=False)
        self.register_buffer("shift", scale_column(shift), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        images: Tensor = self.first_stage.decode(states / self.scale + self.shift, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images


class PatchDecoder(KlDecoder):
    """Decodes states that are patches of latents, normalized by the first stage's own statistics.

    Args:
        first_stage: the autoencoder of FLUX.2, whose batch normalization has mean and variance of each channel of the patches.
    """

    def __init__(self, first_stage: nn.Module, *_: PerChannel) -> None:
        super().__init__(first_stage, *patch_scaling(first_stage))
        self._patch = int(first_stage.config.patch_size[0])  # type: ignore[union-attr, index]  # diffusers' own

    def forward(self, states: Tensor) -> Tensor:
        latents = F.pixel_shuffle(states / self.scale + self.shift, self._patch)
        images: Tensor = self.first_stage.decode(latents, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images


class FrameDecoder(KlDecoder):
    """Decodes states as the one frame of a video.

    The frames before the first one are zeros to a causal convolution, so of its weights only those of its own frame matter: convolutions
    become those of images, which runtimes are made for.

    Args:
        first_stage: the autoencoder of Qwen-Image; its encoder is dropped.
        scale, shift: see `KlDecoder`.
    """

    def __init__(self, first_stage: nn.Module, scale: PerChannel, shift: PerChannel = 0.0) -> None:
        super().__init__(first_stage, scale, shift)
        make_images(self.first_stage)

    def forward(self, states: Tensor) -> Tensor:
        stage: Any = self.first_stage
        frame = (states / self.scale + self.shift).unsqueeze(2)
        images: Tensor = stage.decoder(stage.post_quant_conv(frame)).squeeze(2)
        return images.clamp(-1, 1)


def make_images(module: nn.Module) -> None:
    """Replace the layers of a module for videos by those that compute the same for a single frame."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv3d):
            setattr(module, name, _OneFrame(child))
        elif isinstance(child, nn.Upsample):
            child.mode = "nearest"  # as "nearest-exact" does at a whole factor, but with an operator of its own in ONNX
        else:
            make_images(child)


class _OneFrame(nn.Module):
    """A causal convolution of the first frame of a video [B, C, 1, H, W], as a convolution of images."""

    def __init__(self, causal: nn.Conv3d) -> None:
        super().__init__()
        padding: Any = causal._padding  # diffusers' own, the innermost axis first
        self.weight, self.bias = nn.Parameter(causal.weight.detach()[:, :, -1], requires_grad=False), causal.bias
        self._padding = int(padding[2]), int(padding[0])

    def forward(self, frame: Tensor) -> Tensor:
        return F.conv2d(frame.squeeze(2), self.weight, self.bias, padding=self._padding).unsqueeze(2)


class VqDecoder(DecoderModule):
    """Decodes the codes of a `VQModel` that are nearest to `states / scale + shift` (van den Oord et al. 2017).

    The nearest code is the one with the largest $z e - |e|^2 / 2$. Without a root or a difference of large squares, rounding makes no ties.

    Args:
        first_stage: the VQModel; its encoder is dropped.
        scale: see `KlDecoder`.
        shift: see `KlDecoder`.
    """

    codes: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, first_stage: nn.Module, scale: PerChannel, shift: PerChannel = 0.0) -> None:
        super().__init__()
        self.register_buffer("codes", first_stage.quantize.embedding.weight.detach())  # type: ignore[union-attr, operator]  # of VQModel
        del first_stage.quantize
        self.first_stage = without_parts(first_stage, "encoder", "quant_conv")
        self.register_buffer("scale", scale_column(scale), persistent=False)
        self.register_buffer("shift", scale_column(shift), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        latents = (states / self.scale + self.shift).movedim(1, -1)
        nearest = (latents @ self.codes.T - self.codes.square().sum(1) / 2).argmax(-1)
        quantized = F.embedding(nearest, self.codes).movedim(-1, 1)
        images: Tensor = self.first_stage.decode(quantized, force_not_quantize=True, return_dict=False)[0]  # type: ignore[operator]  # diffusers' own
        return images

    def example_states(self, batch: int, shape: tuple[int, ...]) -> Tensor:
        """Return states that are codes: for a state half way between two codes, float32 may choose either."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randint(len(self.codes), (batch, *shape[1:]), generator=generator)
        return (self.codes[chosen].movedim(-1, 1) - self.shift) * self.scale


FIRST_STAGES: Mapping[str, type[KlDecoder | VqDecoder]] = {
    "AutoencoderKL": KlDecoder,
    "AsymmetricAutoencoderKL": KlDecoder,
    "AutoencoderTiny": KlDecoder,
    "AutoencoderDC": KlDecoder,
    "AutoencoderKLFlux2": PatchDecoder,
    "AutoencoderKLQwenImage": FrameDecoder,
    "VQModel": VqDecoder,
}


def find_first_stage(folder: DiffusersFolder) -> str | None:
    """Return the name of the part that decodes latents; None if the states are images.

    Raises:
        UsageError: its class is not supported, or its configuration has a key that the class does not know.
    """
    name = next((name for name, kind in folder.parts.items() if kind in FIRST_STAGES or name in FIRST_STAGE_PARTS), None)
    if name is None:
        return None
    kind = folder.parts[name]
    if kind not in FIRST_STAGES:
        raise UsageError(
            "The pipeline's first stage is not supported.",
            found=f"{folder.path / name}: {kind}",
            expected=" or ".join(FIRST_STAGES),
            mend=f"to export the denoiser alone, take {name} out of model_index.json: the samples are then latents",
        )
    check_keys(folder.path / name, kind, folder.config(name))
    _ = latent_scaling(folder, name)
    return name


def latent_channels(folder: DiffusersFolder, name: str) -> int:
    """Return the number of channels of the states that a first stage decodes."""
    config = folder.complete_config(name)
    stated = next(config[key] for key in CHANNELS if config.get(key))
    return int(stated) * patch_of(config) ** 2


def pixels_of(folder: DiffusersFolder, otherwise: int) -> int:
    """Return the pixels of the image for each element of a state, along each side; `otherwise` if no first stage says so."""
    name = find_first_stage(folder)
    if name is None:
        return otherwise
    stage = folder.complete_config(name)
    blocks = next((stage[key] for key in BLOCKS if key in stage), None)
    return otherwise if blocks is None else int(2 ** (len(blocks) - 1)) * patch_of(stage)


def patch_of(config: Mapping[str, Any]) -> int:
    """Return the side in latents of what is a state's element for a first stage of this configuration."""
    height, width = config.get("patch_size") or (1, 1)
    if height != width:
        raise UsageError("The patches of the first stage are not square.", found=f"patch_size = {[height, width]}", expected="equal sides")
    return int(height)


def load_decoder(folder: DiffusersFolder) -> DecoderModule | None:
    """Load the decoder of a pipeline; None if there is no first stage and the states are images. Raises what `find_first_stage` raises."""
    name = find_first_stage(folder)
    return None if name is None else FIRST_STAGES[folder.parts[name]](folder.load(name), *latent_scaling(folder, name))


def latent_scaling(folder: DiffusersFolder, name: str) -> tuple[PerChannel, PerChannel]:
    """Return scale and shift of the latents. With statistics, latents are `states * std / scaling_factor + mean`."""
    if folder.pipeline in UNSCALED_PIPELINES or FIRST_STAGES[folder.config(name)["_class_name"]] is PatchDecoder:
        return 1.0, 0.0
    config: Mapping[str, Any] = folder.complete_config(name)
    factor, shift = float(config.get("scaling_factor", 1.0)), float(config.get("shift_factor") or 0.0)
    mean, std = (config.get(key) for key in STATISTICS)
    if mean is None and std is None:
        return factor, shift
    if mean is None or std is None or shift:
        found = ", ".join(f"{key} = {config.get(key)}" for key in (*STATISTICS, "shift_factor"))
        raise UsageError(
            "The first stage's configuration describes its latents in part.",
            found=f"{folder.path / name}: {found}",
            expected=f"both {' and '.join(STATISTICS)}, without a shift_factor; or neither",
            mend="copy the configuration that the first stage was saved with",
        )
    return [factor / one for one in std], mean


def patch_scaling(first_stage: nn.Module) -> tuple[PerChannel, PerChannel]:
    """Return scale and shift of the patches of FLUX.2's first stage, from the statistics of its batch normalization."""
    statistics: Any = first_stage.bn
    deviation = (statistics.running_var + statistics.eps).sqrt()
    return (1 / deviation).tolist(), statistics.running_mean.tolist()


def scale_column(values: PerChannel) -> Tensor:
    """Return a value, or a value for each channel [channels, 1, 1], in float32."""
    column = torch.tensor(values, dtype=torch.float32)
    return column.reshape(-1, 1, 1) if column.ndim else column


def without_parts(first_stage: nn.Module, *names: str) -> nn.Module:
    """Remove the parts that the other direction needs, and return the rest for inference."""
    for name in names:
        if hasattr(first_stage, name):
            delattr(first_stage, name)
    return first_stage.eval().requires_grad_(False)
