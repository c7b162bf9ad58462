"""Prompts of their own lengths, filled up to the length of the engines."""

from __future__ import annotations

import pytest
import torch

from engines.bundle.manifest import InputRecord
from ptqd_export.diffusers.filled_prompts import filled
from ptqd_export.models.conditions import EMBEDDINGS, MASK
from ptqd_export.models.diffusers_models.transformers.chroma import TOKEN_MASK
from ptqd_export.models.diffusers_models.transformers.family_table import QWEN_MASK


def inputs(mask: str | None) -> dict[str, InputRecord]:
    known = {EMBEDDINGS: InputRecord(name=EMBEDDINGS, dtype="float32", shape=(5, 3))}
    return known if mask is None else known | {mask: InputRecord(name=mask, dtype="int64", shape=(5,))}


def test_a_list_of_captions_becomes_rows_and_their_mask() -> None:
    captions = [torch.randn(2, 3), torch.randn(5, 3)]
    found = filled({EMBEDDINGS: captions}, inputs(MASK))
    assert found[MASK].tolist() == [[1, 1, 0, 0, 0], [1] * 5]
    assert torch.equal(found[EMBEDDINGS][0], torch.cat([captions[0], torch.zeros(3, 3)]))
    assert torch.equal(found[EMBEDDINGS][1], captions[1])


@pytest.mark.parametrize("mask", [None, torch.tensor([[1, 1, 0, 0]])])
def test_a_mask_is_filled_up_with_its_embeddings_and_none_keeps_all(mask: torch.Tensor | None) -> None:
    found = filled({EMBEDDINGS: torch.ones(1, 4, 3), QWEN_MASK: mask}, inputs(QWEN_MASK))
    assert found[EMBEDDINGS].sum(-1).tolist() == [[3, 3, 3, 3, 0]]
    assert found[QWEN_MASK].tolist() == [[1, 1, 1, 1, 0] if mask is None else [1, 1, 0, 0, 0]]


def test_a_mask_over_text_and_image_is_cut_to_the_text() -> None:
    """As Chroma's pipeline gives it, in numbers."""
    found = filled({EMBEDDINGS: torch.ones(1, 4, 3), TOKEN_MASK: torch.tensor([[1.0, 1, 0, 0, 1, 1, 1]])}, inputs(TOKEN_MASK))
    assert found[TOKEN_MASK].tolist() == [[1, 1, 0, 0, 0]]


def test_networks_without_a_mask_and_long_prompts_keep_theirs() -> None:
    given = {EMBEDDINGS: torch.ones(1, 4, 3)}
    assert filled(given, inputs(None)) == given
    assert filled({EMBEDDINGS: torch.ones(1, 7, 3)}, inputs(MASK))[EMBEDDINGS].shape == (1, 7, 3)
