"""How pipelines call networks of the table, in forms of states, positions and sizes; whole pipelines prove the rest."""

from __future__ import annotations

import re

import pytest
import torch

from engines.errors import UsageError
from ptqd_export.diffusers.pipeline_call import PipelineCall
from ptqd_export.models.diffusers_models.transformers.family_table import TRANSFORMERS
from tests.ptqd_export.models.tiny_transformers import PIPED, TINY


def test_every_network_of_the_table_is_proved_in_a_pipeline() -> None:
    assert set(TRANSFORMERS) == {TINY[name].network[0] for name in PIPED}


def test_a_network_that_lists_and_negates_is_called_and_answers_so() -> None:
    call, states = PipelineCall((4, 6, 8), listed=True, negated=True), torch.randn(3, 4, 6, 8)
    given = list(states.unsqueeze(2).unbind())
    assert torch.equal(call.states(given), states)
    returned = call.returned(states)
    assert [one.shape for one in returned] == [(4, 1, 6, 8)] * 3
    assert torch.equal(-torch.stack(list(returned)).squeeze(2), states)


def test_positions_with_an_axis_behind_the_grid_are_those_of_every_sample() -> None:
    call, states = PipelineCall((16, 4, 6), patch=1, axes_behind=1), torch.zeros(2, 24, 16)
    one, rows, columns = torch.arange(1), torch.arange(4), torch.arange(6)
    positions = torch.cartesian_prod(one, rows, columns, one).expand(2, -1, -1)
    call.check(states, positions)
    with pytest.raises(
        UsageError, match=re.compile(r"other places.*up to \[0, 5, 3, 0\]\n +expected: +positions up to \[0, 3, 5, 0\]", re.DOTALL)
    ):
        call.check(states, torch.cartesian_prod(one, columns, rows, one).expand(2, -1, -1))


def test_grids_of_tokens_are_those_of_the_size() -> None:
    call, states = PipelineCall((4, 6, 10), patch=2), torch.zeros(2, 15, 16)
    call.check(states, grids=[[(1, 3, 5)]] * 2)
    with pytest.raises(UsageError, match=r"(?s)other places.*\(1, 5, 3\).*\(1, 3, 5\)"):
        call.check(states, grids=[[(1, 5, 3)]] * 2)
    with pytest.raises(UsageError, match="other places"):
        call.check(states, grids=[[(1, 3, 5), (1, 3, 5)]])
