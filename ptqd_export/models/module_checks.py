"""Checks of a model's modules when they are loaded: that their weights are finite, and that the decoder makes images."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from engines.errors import PtqdError, UsageError, first_line

CHANNELS = (1, 3)
"""Channels of gray and of colour images."""


def check_finite(module: nn.Module, name: str, lora: Path | None = None) -> None:
    """Refuse weights with NaN or infinity. Masks, which hold nothing but 0 and -infinity, are no weights.

    Args:
        module: the module.
        name: its name, for the message.
        lora: LoRA file that was fused into it, or None.

    Raises:
        PtqdError: a parameter or buffer is not finite; the message names the first one.
    """
    for key, values in chain(module.named_parameters(), module.named_buffers()):
        if _is_damaged(values):
            mend = "copy the model again; if float16 overflowed when the model was saved, get its weights in float32 or bfloat16"
            raise PtqdError(
                "The model's weights contain NaN or infinity.",
                found=f"{name}: {key}, {int((~values.isfinite()).sum())} of {values.numel()} values",
                expected="finite weights",
                mend=mend if lora is None else f"build without the LoRA {lora}, or with a smaller scale; if that fails too, {mend}",
            )


def check_images(decoder: nn.Module, sample_shape: tuple[int, ...], mend: str | None) -> None:
    """Check, without computing anything, that a decoder turns states into images.

    Args:
        decoder: a `DecoderModule`.
        sample_shape: shape of one state.
        mend: what the user can do about a decoder that does not.

    Raises:
        UsageError: it does not take the states, or returns something else.
    """
    try:
        found = output_shape(decoder, (1, *sample_shape))
    except Exception as error:  # whatever the layers raise
        raise UsageError(
            "The decoder does not take the model's samples.",
            found=f"samples of shape {list(sample_shape)}: {first_line(error)}",
            expected="a first stage and a denoiser of one pipeline",
            mend=mend,
        ) from error
    if len(found) != 4 or found[1] not in CHANNELS:
        raise UsageError(
            "The decoder does not return images.",
            found=f"shape {found[1:]}",
            expected="[1, height, width] or [3, height, width]",
            mend=mend,
        )


def image_shape(decoder: nn.Module, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a decoder's images, [1 or 3, H, W], without computing one."""
    return tuple(output_shape(decoder, (1, *sample_shape))[1:])


def check_states(encoder: nn.Module, decoder: nn.Module, sample_shape: tuple[int, ...]) -> None:
    """Check, without computing anything, that an encoder turns the decoder's images back into states.

    Raises:
        UsageError: it does not take the images, or returns something else.
    """
    images = output_shape(decoder, (1, *sample_shape))
    try:
        found = str(output_shape(encoder, tuple(images))[1:])
    except Exception as error:  # whatever the layers raise
        found = first_line(error)
    if found != str(list(sample_shape)):
        raise UsageError(
            "The encoder does not turn the decoder's images back into states.",
            found=f"images of shape {images[1:]}: {found}",
            expected=f"states of shape {list(sample_shape)}",
            mend="leave model.encoder out of the plan: the bundle then samples from noise alone",
        )


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Return the shape [batch, ...] of a module's output, without the time and memory of computing it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # errors still arrive as exceptions
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            return list(module(torch.zeros(shape)).shape)
    finally:
        logger.setLevel(level)


def _is_damaged(values: Tensor) -> bool:
    if not values.is_floating_point() or not values.numel():
        return False
    if all(bool(end.isfinite()) for end in values.aminmax()):  # one pass without a temporary; NaN is both minimum and maximum
        return False
    return not bool(((values == 0) | values.isneginf()).all())
