"""The step that a pipeline means, from a timestep that it scaled and rounded."""

from __future__ import annotations

import re

import pytest
import torch

from engines.errors import UsageError
from ptqd_export.diffusers.timesteps import nearest_timestep
from ptqd_export.models.diffusers_models.transformers.transformer_family import TimestepMap

UNCHANGED, PER_THOUSAND = TimestepMap(), TimestepMap(1 / 1000)
FLOW = (1000.0, 987.25, 973.5, 500.0, 62.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("timestep", FLOW)
def test_a_scaled_and_rounded_timestep_is_found(dtype: torch.dtype, timestep: float) -> None:
    given = torch.tensor([timestep, timestep]).to(dtype) / 1000
    assert nearest_timestep(given, FLOW, PER_THOUSAND) == timestep


@pytest.mark.parametrize("timestep", [*FLOW, 998.3])
def test_a_timestep_counted_from_the_noisiest_is_found(timestep: float) -> None:
    """Z-Image's pipeline gives `(1000 - t) / 1000`: a small number, of which float32 has all digits."""
    given = (1000 - torch.tensor([timestep])) / 1000
    assert nearest_timestep(given, {timestep, *FLOW}, TimestepMap(-1 / 1000, 1.0)) == timestep


@pytest.mark.parametrize("given", [500, 500.0, torch.tensor(500), torch.tensor([500.0], dtype=torch.float64)])
def test_whole_timesteps_are_found_in_any_type(given: torch.Tensor | float) -> None:
    assert nearest_timestep(given, FLOW, UNCHANGED) == 500


@pytest.mark.parametrize("given", [torch.tensor(0.6), torch.tensor(0.5005), torch.tensor(0.51, dtype=torch.bfloat16)])
def test_a_timestep_between_those_of_the_schedule_is_none_of_them(given: torch.Tensor) -> None:
    assert nearest_timestep(given, FLOW, PER_THOUSAND) is None


def test_timesteps_that_rounding_made_equal_are_refused() -> None:
    given = torch.tensor(999.0).to(torch.bfloat16) / 1000
    with pytest.raises(UsageError, match=re.compile("tell the steps.*rounded to bfloat16, for 1000 and 999\n.*in float32", re.DOTALL)):
        nearest_timestep(given, (1000.0, 999.0, 500.0), PER_THOUSAND)
