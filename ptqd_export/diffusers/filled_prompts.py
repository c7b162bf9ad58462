"""Bring embeddings of prompts, which some pipelines cut to the prompts' own lengths, to the one length of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engines.bundle.manifest import InputRecord
from ptqd_export.models.conditions import EMBEDDINGS, MASK
from ptqd_export.models.diffusers_models.transformers.chroma import TOKEN_MASK
from ptqd_export.models.diffusers_models.transformers.family_table import QWEN_MASK

MASKS = (MASK, QWEN_MASK, TOKEN_MASK)
"""Names of masks of a prompt's tokens."""


def filled(given: Mapping[str, Any], inputs: Mapping[str, InputRecord]) -> dict[str, Any]:
    """Return a pipeline's conditions with embeddings and mask of as many tokens as the engines take, where these take a mask.

    Tokens behind a prompt are zeros that the mask drops. A prompt longer than the engines take stays as it is.

    Args:
        given: the pipeline's arguments by name: embeddings [B, tokens, width], or a list of [tokens, width] without a mask; and the mask
            [B, tokens], which may go on over the image's, and of which None keeps all tokens.
        inputs: inputs of the network.
    """
    found, name = dict(given), next((one for one in MASKS if one in inputs), None)
    embeddings = found.get(EMBEDDINGS)
    if name is None or embeddings is None:
        return found
    rows = list(embeddings)
    given_masks = [torch.ones(len(row), dtype=torch.int64, device=row.device) for row in rows] if found.get(name) is None else found[name]
    masks = [mask[: len(row)] for mask, row in zip(given_masks, rows, strict=True)]
    tokens = max(inputs[EMBEDDINGS].shape[0], *map(len, rows))
    found[EMBEDDINGS] = torch.stack([_to_length(row, tokens) for row in rows])
    found[name] = torch.stack([_to_length(mask, tokens) for mask in masks])
    return found


def _to_length(row: Tensor, tokens: int) -> Tensor:
    """Return [n, ...] with zeros behind up to [tokens, ...]."""
    return F.pad(row, (*[0] * (2 * (row.ndim - 1)), 0, tokens - len(row)))
