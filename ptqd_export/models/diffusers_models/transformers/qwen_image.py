"""Qwen-Image's attention and positions in real numbers: diffusers' own turns queries and keys as complex ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptqd_export.models.diffusers_models.transformers.fixed_rotary import LONGEST_TEXT, Turns, grid_positions, turned, turns_at
from ptqd_export.models.diffusers_models.transformers.frame import Frame

PATCH = 2


class JointAttention:
    """Stands in for the processor of Qwen-Image's attention."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Turns, Turns] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the attention of an image's tokens and of the text's, each [B, S, width], to both; the mask is that of the text."""
        assert attention_mask is None
        assert image_rotary_emb is not None
        assert encoder_hidden_states_mask is not None
        image_turns, text_turns = image_rotary_emb
        image = _heads(attn, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k), hidden_states, image_turns)
        added = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = _heads(attn, added, (attn.norm_added_q, attn.norm_added_k), encoder_hidden_states, text_turns)
        query, key, value = (torch.cat(each, dim=1).transpose(1, 2) for each in zip(text, image, strict=True))
        seen = torch.cat([encoder_hidden_states_mask, torch.ones_like(hidden_states[:, :, 0], dtype=torch.bool)], dim=1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None, :]).transpose(1, 2).flatten(2)
        words = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, words:]), attn.to_add_out(out[:, :words])


def _heads(attn: Any, layers: Sequence[nn.Module], norms: Sequence[nn.Module | None], tokens: Tensor, turns: Turns) -> tuple[Tensor, ...]:
    """Return queries, keys and values [B, S, heads, dim] of tokens, the first two normalized and turned."""
    query, key, value = (layer(tokens).unflatten(-1, (attn.heads, -1)) for layer in layers)
    query, key = (each if norm is None else norm(each) for each, norm in zip((query, key), norms, strict=True))
    return turned(query, turns), turned(key, turns), value


class CentredRotary(nn.Module):
    """Stands in for Qwen-Image's `pos_embed`: the middle of an image is at 0, and its text begins where its rows or columns end.

    Args:
        grid: rows and columns of the image in tokens.
        dims: width of each axis in the head: frame, row and column.
        theta: base of the wave lengths.
    """

    image_cosine: Tensor
    image_sine: Tensor
    text_cosine: Tensor
    text_sine: Tensor

    def __init__(self, grid: tuple[int, ...], dims: Sequence[int], theta: float) -> None:
        super().__init__()
        middle = [0, *(side - side // 2 for side in grid)]
        image = grid_positions(grid, len(dims)) - np.array(middle, dtype=np.float64)
        first = max(side // 2 for side in grid)
        text = np.repeat(np.arange(first, first + LONGEST_TEXT, dtype=np.float64)[:, None], len(dims), axis=1)
        for name, positions in (("image", image), ("text", text)):
            for part, values in zip(("cosine", "sine"), turns_at(positions, dims, theta), strict=True):
                self.register_buffer(f"{name}_{part}", values, persistent=False)

    def forward(self, _: object, max_txt_seq_len: int, device: torch.device) -> tuple[Turns, Turns]:
        """Return cosines and sines [1, S, dim] of the image's tokens, and of `max_txt_seq_len` text tokens."""
        image, text = (self.image_cosine, self.image_sine), (self.text_cosine[:max_txt_seq_len], self.text_sine[:max_txt_seq_len])
        return _one_batch(image, device), _one_batch(text, device)


def _one_batch(turns: Turns, device: torch.device) -> Turns:
    cosine, sine = turns
    return cosine[None].to(device), sine[None].to(device)


def prepare_qwen_image(network: nn.Module, frame: Frame) -> None:
    """Replace complex numbers, for which ONNX has no operators, by their parts."""
    whole: Any = network
    whole.pos_embed = CentredRotary(frame.grid(PATCH), whole.pos_embed.axes_dim, whole.pos_embed.theta)
    for block in whole.transformer_blocks:
        block.attn.set_processor(JointAttention())
