"""Z-Image's transformer for a whole batch: diffusers' own takes a list of images and captions, and loops over them."""

from __future__ import annotations

from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptqd_export.models.diffusers_models.transformers.fixed_rotary import RotaryTables, Turns, grid_positions, turned
from ptqd_export.models.diffusers_models.transformers.frame import Frame, pack, unpack

PATCH = 2
LAYERS = f"{PATCH}-1"
"""Key of the layers for patches of this side and one frame."""

GROUP = 32
"""The network fills the tokens of a caption, and those of an image, up to a multiple of this; it sees those that it fills in."""


class Attention:
    """Stands in for the processor of Z-Image's attention, which turns queries and keys as complex numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Turns | None = None,
    ) -> Tensor:
        """Return the attention [B, S, width] of tokens to each other; a mask [B, S] bool says which are seen."""
        assert encoder_hidden_states is None
        assert freqs_cis is not None
        query, key, value = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        query, key = (each if norm is None else norm(each) for each, norm in ((query, attn.norm_q), (key, attn.norm_k)))
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        query, key, value = (each.transpose(1, 2) for each in (turned(query, freqs_cis), turned(key, freqs_cis), value))
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        return attn.to_out[0](seen)  # type: ignore[no-any-return]  # diffusers' own


def prepare_z_image(network: nn.Module, frame: Frame) -> None:
    """Replace complex numbers, for which ONNX has no operators, by their parts.

    The positions of an image's tokens are row and column, behind a 1 that stands for its own place. Those that are filled in are at 0.
    """
    whole: Any = network
    whole.forward = MethodType(_forward, whole)
    grid = np.pad(grid_positions(frame.grid(PATCH), 2), ((0, 0), (1, 0)), constant_values=1)
    filled = np.pad(grid, ((0, -len(grid) % GROUP), (0, 0))).astype(np.int64)
    whole.register_buffer("image_positions", torch.from_numpy(filled), persistent=False)
    whole.rope_embedder = RotaryTables(max(whole.axes_lens), whole.axes_dims, whole.rope_theta)
    for block in (*whole.noise_refiner, *whole.context_refiner, *whole.layers):
        block.attention.set_processor(Attention())


def _forward(
    network: Any,
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    encoder_attention_mask: Tensor,
    return_dict: bool = False,
) -> tuple[Tensor]:
    """Return the network's output for latents [B, C, H, W], times [B], embeddings [B, tokens, width] and their mask [B, tokens].

    A caption is the first tokens of its row, as many as the mask keeps. Its image follows it in position.
    """
    assert not return_dict
    time = network.t_embedder(timestep * network.t_scale)
    lengths = encoder_attention_mask.sum(dim=1, keepdim=True)
    filled = (lengths + GROUP - 1) // GROUP * GROUP
    patches = _channels_last(pack(hidden_states, PATCH))
    image = _filled(network.all_x_embedder[LAYERS](patches), network.x_pad_token)
    image_turns = network.rope_embedder(_image_positions(network, filled))
    for layer in network.noise_refiner:
        image = layer(image, None, image_turns, time)
    text, places = _caption(network, encoder_hidden_states, lengths)
    text_turns, seen = network.rope_embedder(F.pad(1 + places[:, None], (0, 2))), places < filled
    for layer in network.context_refiner:
        text = layer(text, seen, tuple(each[None] for each in text_turns))
    seen = torch.cat([torch.ones_like(image[:, :, 0], dtype=torch.bool), seen], dim=1)
    turns = tuple(
        torch.cat([own, each.expand(own.shape[0], *each.shape)], dim=1) for own, each in zip(image_turns, text_turns, strict=True)
    )
    both = torch.cat([image, text], dim=1)
    for layer in network.layers:
        both = layer(both, seen, turns, time)
    out = network.all_final_layer[LAYERS](both[:, : patches.shape[1]], c=time)
    return (unpack(_channels_first(out), tuple(hidden_states.shape[2:]), PATCH),)


def _caption(network: Any, embeddings: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return a caption's tokens [B, S, width], in which a learned one stands for each behind the caption; and their places [S]."""
    text = network.cap_embedder(embeddings)
    text = _filled(text, network.cap_pad_token)
    places = torch.arange(text.shape[1], device=text.device)
    return torch.where((places < lengths)[:, :, None], text, network.cap_pad_token), places


def _filled(tokens: Tensor, token: Tensor) -> Tensor:
    """Return tokens [B, S, width] filled up with a learned one [1, width] to whole groups."""
    missing = -tokens.shape[1] % GROUP
    return torch.cat([tokens, token.expand(tokens.shape[0], missing, -1)], dim=1) if missing else tokens


def _image_positions(network: Any, filled: Tensor) -> Tensor:
    """Return positions [B, S, 3] of an image's tokens behind its caption of `filled` tokens [B, 1]."""
    first = filled + 1
    positions: Tensor = network.image_positions.to(first.device) * F.pad(first, (0, 2), value=1)[:, None]
    return positions


def _channels_last(tokens: Tensor) -> Tensor:
    """Return packed tokens with the channels behind the places of a patch, as the network has them."""
    places: Tensor = tokens.unflatten(-1, (-1, PATCH**2))
    return places.transpose(-1, -2).flatten(-2)


def _channels_first(tokens: Tensor) -> Tensor:
    """Return the network's tokens with the channels before the places of a patch; the inverse of `_channels_last`."""
    places: Tensor = tokens.unflatten(-1, (PATCH**2, -1))
    return places.transpose(-1, -2).flatten(-2)
