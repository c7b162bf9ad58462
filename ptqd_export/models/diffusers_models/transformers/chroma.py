"""Chroma's embedding of the timestep for a batch of any size, and its mask over text and image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ptqd_export.models.conditions import EMBEDDINGS
from ptqd_export.models.diffusers_models.transformers.frame import Frame

TOKEN_MASK = "attention_mask"

PATCH = 2


class ModulationInput(nn.Module):
    """Stands in for Chroma's `time_text_embed`, which fixes the batch where it embeds a guidance scale that is always 0.

    Args:
        embed: the network's own.
    """

    unguided: Tensor
    index: Tensor

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        own: Any = embed
        self.time_proj = own.time_proj
        self.register_buffer("unguided", own.guidance_proj(torch.zeros(1, device=own.mod_proj.device)), persistent=False)
        self.register_buffer("index", own.mod_proj, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        """Return the embedding of time, guidance and index for each modulation, [B, modulations, width], for timesteps [B]."""
        time: Tensor = self.time_proj(timestep)
        batch, rows = time.shape[0], self.index.shape[0]
        parts = (time[:, None].expand(-1, rows, -1), self.unguided.expand(batch, rows, -1), self.index.expand(batch, -1, -1))
        return torch.cat(parts, dim=-1)


def whole_mask(frame: Frame, conditions: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the mask [B, tokens] over text and image: as in the pipeline a number, which the network adds to its attention's scores."""
    text = conditions[TOKEN_MASK].to(conditions[EMBEDDINGS].dtype)
    return {TOKEN_MASK: torch.cat([text, text.new_ones(text.shape[0], frame.tokens(PATCH))], dim=1)}
