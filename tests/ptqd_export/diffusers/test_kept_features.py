"""A pipeline's calls in a chain whose steps reuse features end where the sampler does, whichever way the branches are evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.errors import UsageError
from engines.networks.engine_bank import EngineBank
from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler
from tests.engines.cut_bundle import cut_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

NUMBERS, LABELS, NULL, SCALE = np.arange(2, dtype=np.int64), torch.tensor([2, 0]), 3, 1.5


@pytest.fixture
def cut(own_tiny: TinyBundle) -> Path:
    return cut_bundle(own_tiny).folder


def _guided(denoiser: PtqdDenoiser, x: Tensor, timestep: float, *, together: bool) -> Tensor:
    nothing = torch.full_like(LABELS, NULL)
    if together:
        without, given = denoiser(torch.cat([x, x]), timestep, class_labels=torch.cat([nothing, LABELS])).sample.chunk(2)
    else:
        given, without = (denoiser(x, timestep, class_labels=labels).sample for labels in (LABELS, nothing))
    combined: Tensor = without + SCALE * (given - without)
    return combined


@pytest.mark.parametrize("together", [True, False])
def test_pipeline_ends_where_the_sampler_does(cut: Path, *, together: bool) -> None:
    bundle, noise = Bundle.open(cut), NoiseSource(5, (1, 8, 8))
    chain = Chain(bundle.schedule(), EngineBank(bundle, SCALE, batch=2), guidance=SCALE)
    assert chain.cut is not None
    denoiser = PtqdDenoiser.from_bundle(cut)
    scheduler = PtqdScheduler.from_bundle(cut, watched=denoiser)
    for stopped in (1, 2, len(scheduler)):  # a chain that is stopped leaves nothing to the next
        scheduler.set_timesteps(len(scheduler.timesteps))
        x = torch.from_numpy(noise.start(NUMBERS))
        for index, timestep in enumerate(scheduler.timesteps[:stopped]):
            out = _guided(denoiser, scheduler.scale_model_input(x, timestep), timestep, together=together)
            fresh = torch.from_numpy(noise.step(index, NUMBERS))
            x = scheduler.step(out, timestep, x, variance_noise=fresh, return_dict=False)[0]
    np.testing.assert_allclose(x, chain.sample(noise, NUMBERS, LABELS.numpy()), rtol=0, atol=1e-5)


def test_step_whose_features_are_missing_is_refused(cut: Path) -> None:
    denoiser, x = PtqdDenoiser.from_bundle(cut), torch.randn(2, 1, 8, 8)
    first, second, third, fourth = (step.timestep for step in Bundle.open(cut).schedule().steps)
    _guided(denoiser, x, first, together=False)
    _guided(denoiser, x, second, together=False)
    for timestep, rows in ((fourth, 2), (second, 2)):
        with pytest.raises(UsageError, match=r"(?s)reuses features which it has not computed.*higher strength"):
            denoiser(x[:rows], timestep, class_labels=LABELS[:rows])
    _guided(denoiser, x, third, together=False)
    with pytest.raises(UsageError, match="step 3, call 0, with 1 samples"):
        denoiser(x[:1], fourth, class_labels=LABELS[:1])


def test_states_of_two_chains_at_one_step_are_refused_until_features_are_computed_again(cut: Path) -> None:
    """No call says which of the chains it continues."""
    denoiser, other = PtqdDenoiser.from_bundle(cut), PtqdDenoiser.from_bundle(cut)
    first, second, third, fourth = (step.timestep for step in Bundle.open(cut).schedule().steps)
    x, y = torch.randn(2, 2, 1, 8, 8)
    for states in (x, y):
        denoiser(states, first, class_labels=LABELS)
    for states in (x, y):
        with pytest.raises(UsageError, match="step 1, call 0, with 2 samples, behind a step of several chains"):
            denoiser(states, second, class_labels=LABELS)
    for one in (denoiser, other):
        one(y, third, class_labels=LABELS)
    found, expected = (one(y, fourth, class_labels=LABELS).sample for one in (denoiser, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_one_precision_at_every_step_keeps_nothing(cut: Path) -> None:
    denoiser = PtqdDenoiser.from_bundle(cut, precision="w8a8")
    timestep = Bundle.open(cut).schedule().steps[1].timestep
    assert denoiser(torch.randn(2, 1, 8, 8), timestep, class_labels=LABELS).sample.shape == (2, 1, 8, 8)
