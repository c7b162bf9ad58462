"""Guidance that keeps the norm of the conditional output in every patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.chain.norm_guidance import NormGuidance

BRANCHES = np.random.default_rng(3).standard_normal((2, 3, 5, 4, 6)).astype(np.float32)


def test_packed_tokens_have_the_norm_of_the_conditional_ones() -> None:
    """The formula of `QwenImagePipeline`, on tokens of 2x2 latents."""

    def packed(latents: torch.Tensor) -> torch.Tensor:
        return latents.reshape(3, 5, 2, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(3, 6, 20)

    conditional, unconditional = (packed(torch.from_numpy(branch)) for branch in BRANCHES)
    combined = unconditional + 4.0 * (conditional - unconditional)
    expected = combined * (torch.norm(conditional, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True))
    (found,) = NormGuidance(4.0, patch=2)(BRANCHES)
    torch.testing.assert_close(packed(torch.from_numpy(found)), expected, rtol=1e-5, atol=1e-6)


def test_any_number_of_sides() -> None:
    long, flat = BRANCHES.reshape(2, 3, 5, 24), NormGuidance(3.0, patch=1)
    (found,) = flat(long)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(long[0], axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.reshape(3, 5, 4, 6), flat(BRANCHES)[0], rtol=1e-6)


def test_zeros_stay_zeros() -> None:
    assert not NormGuidance(2.0, patch=2)(np.stack([np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2))]).astype(np.float32)).any()


@pytest.mark.parametrize(("guidance", "patch"), [(4.0, None), (1.0, 2), (0.5, 2)])
def test_nothing_is_kept_without_patches_or_without_guidance(guidance: float, patch: int | None) -> None:
    assert NormGuidance.at(guidance, patch) is None
