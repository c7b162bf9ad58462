"""Latents as tokens, with any number of sides."""

from __future__ import annotations

import torch

from ptqd_export.models.diffusers_models.transformers.frame import Frame, pack, unpack


def test_tokens_hold_the_latents_of_a_patch_behind_each_channel() -> None:
    latents = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6)
    tokens = pack(latents, 2)
    assert tokens.shape == (1, 6, 8)
    assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]  # the second patch of the first row: both channels, row by row


def test_tokens_become_the_same_latents_again() -> None:
    for sides in ((8,), (4, 6), (2, 4, 6)):
        latents = torch.randn(3, 5, *sides)
        tokens = pack(latents, 2)
        assert tokens.shape == (3, Frame({}, 5, sides, 8).tokens(2), 5 * 2 ** len(sides))
        torch.testing.assert_close(unpack(tokens, sides, 2), latents, rtol=0, atol=0)
