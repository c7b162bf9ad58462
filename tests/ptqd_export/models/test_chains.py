"""Chains of models that no pipeline of diffusers samples: full precision walks as diffusers' scheduler does, fresh noise included."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.networks.chain_choice import ChainChoice

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

NUM, SEED = 3, 5
ROWS = np.array([2, 0, 1])


def _predict(built: Built, x: Tensor, t: Tensor, guidance: float) -> Tensor:
    """The network's own output under guidance, from the modules that diffusers loads."""
    import diffusers

    folder = built.plan_file.model_path
    kind = built.context.model.family.removeprefix("diffusers ")
    network = getattr(diffusers, kind).from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    if kind == "UNet2DModel":
        conditional, null = {"class_labels": torch.from_numpy(ROWS)}, {"class_labels": torch.full((NUM,), 3)}
    else:
        with np.load(folder.parent / "conditions.npz") as archive:
            table, empty = archive["encoder_hidden_states"], archive["null.encoder_hidden_states"]
        conditional = {"encoder_hidden_states": torch.from_numpy(table[ROWS])}
        null = {"encoder_hidden_states": torch.from_numpy(empty).expand(NUM, -1, -1)}
    with torch.no_grad():
        c, u = (network(x, t, **inputs).sample for inputs in (conditional, null))
    guided: Tensor = u + guidance * (c - u)
    return guided


def _walk(built: Built, noise: NoiseSource, numbers: np.ndarray) -> Tensor:
    import diffusers

    sampler = built.plan_file.plan.sampler
    scheduler = diffusers.DDIMScheduler.from_pretrained(built.plan_file.model_path / "scheduler")
    scheduler.set_timesteps(sampler.steps)
    x = torch.from_numpy(noise.start(numbers))
    for step, t in enumerate(scheduler.timesteps):
        z = torch.from_numpy(noise.step(step, numbers))
        x = scheduler.step(_predict(built, x, t, sampler.guidance), t, x, eta=1.0, variance_noise=z).prev_sample
    return x


@pytest.mark.parametrize("fixture", ["class_build", "cross_build"])
def test_full_precision_walks_as_the_scheduler_does(fixture: str, request: pytest.FixtureRequest) -> None:
    built: Built = request.getfixturevalue(fixture)
    bundle = Bundle.open(Path(built.folder))
    noise, numbers = NoiseSource(SEED, bundle.manifest.model.sample_shape), np.arange(NUM, dtype=np.int64)
    found = ChainChoice(precision="fp32", correction="off").open(bundle, NUM).sample(noise, numbers, ROWS)
    expected = _walk(built, noise, numbers).numpy()
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
