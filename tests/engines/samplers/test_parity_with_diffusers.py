"""Whole chains of a table, walked by `update`, against diffusers' scheduler of the same name: same network, same noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from numpy.typing import NDArray

from engines.samplers import NoiseSchedule, SamplerTable, compile_sampler
from engines.update import update

SHAPE = (2, 3, 4)
STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}

Array = NDArray[Any]


def network(x: Array, t: float) -> Array:
    """A nonlinear stand-in that mixes pixels, depends on the timestep, and is close enough to a denoiser to keep chains bounded."""
    out: Array = 2 * np.tanh(0.5 * x - 0.1 * np.roll(x, 1, axis=-1) - 0.0002 * t)
    return out


def noise_of(steps: int, dtype: Any) -> Array:
    """`x_T`, then the noise of every step."""
    return np.random.default_rng(3).standard_normal((steps + 1, *SHAPE)).astype(dtype)


def walk_table(table: SamplerTable, noise: Array) -> Iterator[Array]:
    x: Array = noise[0]
    history: list[Array] = []
    for i in range(table.steps):
        step = table.step(i)
        x, history = update(x, network(x, step.timestep), step, history)
        x = x + step.sigma * noise[i + 1]
        yield x


def walk_diffusers(scheduler: Any, noise: Array, eta: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[Array]:
    fresh = iter(torch.from_numpy(noise[1:]))
    for name in ("ddim", "ddpm"):
        monkeypatch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", lambda *_, **__: next(fresh))
    options = {"eta": eta} if isinstance(scheduler, DDIMScheduler) else {}
    x = noise[0]
    for t in scheduler.timesteps.tolist():
        out = network(x, t)
        x = scheduler.step(torch.from_numpy(out), t, torch.from_numpy(x), **options).prev_sample.numpy()
        yield x


def in_float64(scheduler: Any) -> Any:
    for tensor in ("alphas_cumprod", "final_alpha_cumprod", "one"):
        if hasattr(scheduler, tensor):
            setattr(scheduler, tensor, getattr(scheduler, tensor).double())
    return scheduler


def differences(name: str, steps: int, eta: float, config: dict[str, Any], dtype: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Largest difference between the two chains after each step, relative to max(1, |x|)."""
    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[name](**config)
    scheduler.set_timesteps(steps)
    alphas = scheduler.alphas_cumprod.double().numpy()
    table = compile_sampler(name, steps, eta, NoiseSchedule.from_scheduler_config(scheduler.config), alphas)
    if dtype == np.float64:
        scheduler = in_float64(scheduler)
    noise = noise_of(steps, dtype)
    ours = list(walk_table(table, noise))
    theirs = list(walk_diffusers(scheduler, noise, eta, monkeypatch))
    assert len(ours) == len(theirs) == steps
    assert ours[-1].dtype == theirs[-1].dtype == dtype
    assert np.isfinite(theirs).all()
    assert np.abs(theirs[-1] - noise[0]).max() > 0.1
    assert len(np.unique(theirs[-1])) > 10, "nearly every pixel ended on the bound, so there is nothing to compare"
    return [float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in zip(ours, theirs, strict=True)]


def configs(**choices: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


EVERY_CONFIG = configs(
    prediction_type=["epsilon", "v_prediction", "sample"], timestep_spacing=["leading", "trailing", "linspace"], clip_sample=[False, True]
)
# At a step per training timestep the three spacings are one and the same.
LONG_CONFIGS = configs(prediction_type=["epsilon", "v_prediction", "sample"], clip_sample=[False, True])


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
def test_ddim_in_float64(config: dict[str, Any], steps: int, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddim", steps, eta, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
def test_ddim_in_float64_over_every_timestep(config: dict[str, Any], eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddim", 1000, eta, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("steps", [7, 30, 600])
@pytest.mark.parametrize(
    "config",
    [STABLE_DIFFUSION | {"set_alpha_to_one": False}, ZERO_SNR, {"clip_sample_range": 0.5}, {"timestep_spacing": "linspace"}],
    ids=str,
)
def test_ddim_in_float64_of_other_schedules_and_counts(config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddim", steps, 0.7, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log"])
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
def test_ddpm_in_float64(config: dict[str, Any], steps: int, variance_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddpm", steps, 1.0, config | {"variance_type": variance_type}, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("steps", [7, 10, 50, 1000])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_ddpm_in_float64_with_the_large_variance(spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"variance_type": "fixed_large", "timestep_spacing": spacing}
    assert max(differences("ddpm", steps, 1.0, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
def test_ddpm_in_float64_over_every_timestep(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddpm", 1000, 1.0, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("steps", [7, 30, 600])
@pytest.mark.parametrize("config", [STABLE_DIFFUSION | {"clip_sample": True}, ZERO_SNR], ids=str)
def test_ddpm_in_float64_of_other_schedules_and_counts(config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(differences("ddpm", steps, 1.0, config, np.float64, monkeypatch)) <= 1e-9


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ddpm", 1.0)])
@pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
def test_the_finished_sample_in_float32(config: dict[str, Any], name: str, eta: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # In mid-chain diffusers' own float32 coefficients are up to 9e-5 away from its float64 ones (DDPM, 1000 steps).
    assert differences(name, steps, eta, config, np.float32, monkeypatch)[-1] <= 5e-5


def test_clipping_changes_the_chain() -> None:
    noise = noise_of(10, np.float64)
    free, clipped = (list(walk_table(compile_sampler("ddim", 10, 0.5, NoiseSchedule(clip_sample=clip)), noise)) for clip in (False, True))
    assert np.abs(free[-1]).max() > 1
    assert np.abs(clipped[-1]).max() <= 1
