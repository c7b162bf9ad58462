"""Which guidance was applied, on outputs that were combined by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.chain.norm_guidance import NormGuidance
from engines.errors import UsageError
from ptqd_export.diffusers.guidance import check_embedded_guidance, check_guidance, check_norm_guidance
from ptqd_export.models.diffusers_models.transformers.transformer_family import AS_HERE

W = 3.0
EPS = torch.finfo(torch.float32).eps


def halves(dtype: torch.dtype, difference: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    unconditional, noise = torch.randn(2, 2, 4, 16, 16, generator=generator)
    return unconditional.to(dtype), (unconditional + difference * noise).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("difference", [1.0, 0.05])
def test_the_fitted_guidance_passes_and_another_does_not(dtype: torch.dtype, difference: float) -> None:
    u, c = halves(dtype, difference)
    output = torch.cat([u, c])
    check_guidance(output, u + W * (c - u), W)
    with pytest.raises(UsageError, match=r"found: +guidance 3\n"):
        check_guidance(output, u + W * (c - u), 7.5)


def test_the_conditional_half_may_come_first_and_the_result_twice() -> None:
    u, c = halves(torch.float32)
    guided = u + W * (c - u)
    check_guidance(torch.cat([c, u]), guided, W)
    check_guidance(torch.cat([c, u]), torch.cat([guided, guided]), W)
    with pytest.raises(UsageError, match=r"found: +guidance 3\n"):
        check_guidance(torch.cat([c, u]), guided, 1.5)


def test_no_guidance_is_one() -> None:
    u, _ = halves(torch.float32)
    check_guidance(u, u.clone(), 1.0)
    check_guidance(u[:1], u[:1].clone(), 1.0)
    check_guidance(u, u.clone(), 0.0)
    with pytest.raises(UsageError, match=r"found: +guidance 1\n"):
        check_guidance(u, u.clone(), W)


def test_branches_that_agree_within_rounding_tell_nothing_and_pass() -> None:
    u, _ = halves(torch.float16)
    c = u.clone()
    c[0, 0, 0, 0] += 0.001
    check_guidance(torch.cat([u, c]), u + W * (c - u), 7.5)


@pytest.mark.parametrize("changed", [lambda g: g * 0.7, lambda g: g[:1], lambda g: g + torch.linspace(0, 1, 16)])
def test_anything_else_is_refused(changed: object) -> None:
    u, c = halves(torch.float32)
    assert callable(changed)
    with pytest.raises(UsageError, match="did not get the guided output"):
        check_guidance(torch.cat([u, c]), changed(u + W * (c - u)), W)


def test_one_branch_alone_is_refused() -> None:
    u, c = halves(torch.float32)
    with pytest.raises(UsageError, match="both branches in one network call or in two"):
        check_guidance(c, u + W * (c - u), W)
    with pytest.raises(UsageError, match="both branches in one network call or in two"):
        check_guidance(c[:1], (u + W * (c - u))[:1], W)


@pytest.mark.parametrize(("given", "fitted"), [(3.5, 3.5), (None, None), (None, 3.5)])
def test_the_fitted_embedded_guidance_passes(given: float | None, fitted: float | None) -> None:
    check_embedded_guidance(given, fitted)


def test_another_embedded_guidance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"found: +guidance 4\n +expected: 3.5[^|]*guidance_scale=3.5, build a bundle"):
        check_embedded_guidance(4.0, 3.5)


def test_a_guidance_that_keeps_norms_is_known_by_its_scale() -> None:
    latents = torch.randn(4, 3, 4, 6, generator=torch.Generator().manual_seed(1)).numpy()
    fitted, branches = NormGuidance(4.0, patch=2), latents.reshape(2, 2, 3, 4, 6)
    check_norm_guidance(latents, fitted(branches)[0], fitted, EPS, AS_HERE)
    for other in (NormGuidance(5.0, patch=2)(branches)[0], branches[1] + 4 * (branches[0] - branches[1])):
        with pytest.raises(UsageError, match="another scale, or of another kind"):
            check_norm_guidance(latents, other, fitted, EPS, AS_HERE)
    with pytest.raises(UsageError, match=r"(?s)guidance 1\n.*guidance_scale=4"):
        check_norm_guidance(latents[:2], latents[:2], fitted, EPS, AS_HERE)
