"""Whole chains of a table, walked by `update`, against diffusers' scheduler of the same name: same network, same noise.

Diffusers computes in float32 here and there: betas, noise levels, fractional timesteps, states. For the comparison in float64 its modules
are given a `torch` and a `numpy` whose float32 is float64, so that its own code runs from beginning to end in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engines.chain.late_start import first_step
from engines.chain.update import update
from engines.samplers import SAMPLERS, NoiseSchedule, SamplerTable, compile_sampler
from engines.samplers.levels.alphas import alpha_bar

# Diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SHAPE = (2, 3, 4)
TOLERANCE = 1e-9
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpm++1": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpm++1-sde": ("DPMSolverMultistepScheduler", {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc2": ("UniPCMultistepScheduler", {}),
    "unipc3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis2": ("DEISMultistepScheduler", {}),
    "deis3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
}
NEW = ["unipc2", "unipc3", "deis2", "deis3", "heun", "lcm", "tcd"]
"""Samplers of few steps or of high order; tests of their own, at fewer cases, are at the end of the class."""
OF_BETAS = [name for name in SCHEDULERS if name not in ("flow-euler", *NEW)]
DPM = [name for name in SCHEDULERS if name.startswith("dpm")]
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}

Array = NDArray[Any]


class InFloat64:
    """A module whose float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for scheduler in {getattr(diffusers, scheduler) for scheduler, _ in SCHEDULERS.values()}:
        module = sys.modules[scheduler.__module__]
        monkeypatch.setattr(module, "np", InFloat64(np))
        monkeypatch.setattr(module, "torch", InFloat64(torch))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(x: Array, t: float) -> Array:
    """A nonlinear stand-in that mixes pixels, depends on the timestep, and is close enough to a denoiser to keep chains bounded."""
    out: Array = 2 * np.tanh(0.5 * x - 0.1 * np.roll(x, 1, axis=-1) - 0.0002 * t)
    return out


def noise_of(rows: int, dtype: Any) -> Array:
    """Of `x_T`, then of every step."""
    return np.random.default_rng(3).standard_normal((rows + 1, *SHAPE)).astype(dtype)


def walk_table(table: SamplerTable, noise: Array) -> Iterator[Array]:
    x: Array = noise[0] * table.init_sigma
    history: list[Array] = []
    for i in range(table.steps):
        step = table.step(i)
        x, history = update(x, network(step.input_scale * x, step.timestep), step, history)
        x = x + step.sigma * noise[i + 1]
        yield x


def walk_diffusers(
    scheduler: Any, noise: Array, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, late: int | None = None
) -> Iterator[Array]:
    """The states after each step from noise, or from a state before the timestep with the index `late`."""
    fresh = iter(torch.from_numpy(noise[1:]))
    monkeypatch.setattr(sys.modules[type(scheduler).__module__], "randn_tensor", lambda *_, **__: next(fresh), raising=False)
    x = noise[0] * (float(getattr(scheduler, "init_noise_sigma", 1.0)) if late is None else 1.0)
    for t in scheduler.timesteps.tolist()[late:]:
        scaled = scheduler.scale_model_input(torch.from_numpy(x), t).numpy() if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(torch.from_numpy(network(scaled, t)), t, torch.from_numpy(x), **options).prev_sample.numpy()
        yield x


def differences(
    name: str,
    steps: int,
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    eta: float | None = None,
    dtype: Any = np.float64,
    chosen: dict[str, list[float]] | None = None,
) -> list[float]:
    """Largest difference between the two chains after each step, relative to max(1, |x|)."""
    kind, always = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**always | config)
    # Euler's list of levels has the end of the chain, 0, too.
    asked: dict[str, Any] = {
        field: [*levels, 0.0] if (name, field) == ("euler", "sigmas") else levels for field, levels in (chosen or {}).items()
    }
    scheduler.set_timesteps(**asked or {"num_inference_steps": steps})
    schedule = NoiseSchedule.from_scheduler_config({"_class_name": kind, **scheduler.config})
    alphas = scheduler.alphas_cumprod.double().numpy() if hasattr(scheduler, "alphas_cumprod") else None
    table = compile_sampler(name, steps, SAMPLERS[name].eta if eta is None else eta, schedule, alphas, **chosen or {})  # type: ignore[arg-type]  # the levels that it has
    assert table.steps == SAMPLERS[name].rows(steps) == len(scheduler.timesteps)
    np.testing.assert_allclose(table.timestep, scheduler.timesteps, rtol=1e-12 if dtype == np.float64 else 1e-6, atol=1e-12)
    noise = noise_of(table.steps, dtype)
    ours = list(walk_table(table, noise))
    theirs = list(walk_diffusers(scheduler, noise, {} if eta is None else {"eta": eta}, monkeypatch))
    assert ours[-1].dtype == theirs[-1].dtype == dtype
    assert np.isfinite(theirs).all()
    assert np.abs(theirs[-1] - noise[0]).max() > 0.1
    assert len(np.unique(theirs[-1])) > 10, "nearly every pixel ended on the bound, so there is nothing to compare"
    return [float(np.max(np.abs(a - b) / np.maximum(1, np.abs(b)))) for a, b in zip(ours, theirs, strict=True)]


def late_differences(name: str, steps: int, strength: float, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> float:
    """Largest difference between the ends of two chains that start late, as diffusers' image-to-image pipelines do."""
    kind, always = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**always | config)
    scheduler.set_timesteps(num_inference_steps=steps)
    first = first_step(steps, strength)
    row_of = SAMPLERS[name].row_of
    assert row_of is not None
    row = row_of(first)
    schedule = NoiseSchedule.from_scheduler_config({"_class_name": kind, **scheduler.config})
    alphas = scheduler.alphas_cumprod.double().numpy() if hasattr(scheduler, "alphas_cumprod") else None
    table = compile_sampler(name, steps, SAMPLERS[name].eta, schedule, alphas, first=first)
    noise = noise_of(table.steps, np.float64)
    clean = np.random.default_rng(4).standard_normal(SHAPE)

    assert row == first * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(row)
    at, of_clean, of_noise = scheduler.timesteps[row : row + 1], torch.from_numpy(clean)[None], torch.from_numpy(noise[0])[None]
    is_flow = hasattr(scheduler, "scale_noise")
    begin = scheduler.scale_noise(of_clean, at, of_noise) if is_flow else scheduler.add_noise(of_clean, of_noise, at)
    alpha, sigma = table.levels[row]
    x: Array = alpha * clean + sigma * noise[0]
    np.testing.assert_allclose(x, begin.numpy()[0], rtol=1e-9, atol=1e-9)
    theirs = list(walk_diffusers(scheduler, np.concatenate([begin.numpy(), noise[1:]]), {}, monkeypatch, row))
    history: list[Array] = []
    for i in range(row, table.steps):
        step = table.step(i)
        x, history = update(x, network(step.input_scale * x, step.timestep), step, history)
        x = x + step.sigma * noise[1 + i - row]
    assert len(theirs) == table.steps - row
    return float(np.max(np.abs(x - theirs[-1]) / np.maximum(1, np.abs(x))))


def configs(**choices: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


SPACINGS = ["leading", "trailing", "linspace"]
PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]
EVERY_CONFIG = configs(prediction_type=PREDICTION_TYPES, timestep_spacing=SPACINGS, clip_sample=[False, True])
# At a step per training timestep the three spacings are one and the same.
LONG_CONFIGS = configs(prediction_type=PREDICTION_TYPES, clip_sample=[False, True])
# Diffusers' PNDM and ancestral Euler take no model that predicts the sample.
UNCLIPPED = [
    (name, config)
    for name in OF_BETAS[2:]
    for config in configs(prediction_type=PREDICTION_TYPES, timestep_spacing=SPACINGS)
    if config["prediction_type"] != "sample" or name not in ("plms", "euler-ancestral")
]


@pytest.mark.usefixtures("in_float64")
class TestInFloat64:
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("steps", [10, 50])
    @pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
    def test_ddim(self, config: dict[str, Any], steps: int, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddim", steps, config, monkeypatch, eta)) <= TOLERANCE

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
    def test_ddim_over_every_timestep(self, config: dict[str, Any], eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddim", 1000, config, monkeypatch, eta)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [7, 30, 600])
    @pytest.mark.parametrize(
        "config",
        [
            STABLE_DIFFUSION | {"clip_sample": False, "set_alpha_to_one": False},
            ZERO_SNR,
            {"clip_sample_range": 0.5},
            {"timestep_spacing": "linspace"},
        ],
        ids=str,
    )
    def test_ddim_of_other_schedules_and_counts(self, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddim", steps, config, monkeypatch, 0.7)) <= TOLERANCE

    @pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log"])
    @pytest.mark.parametrize("steps", [10, 50])
    @pytest.mark.parametrize("config", EVERY_CONFIG, ids=str)
    def test_ddpm(self, config: dict[str, Any], steps: int, variance_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddpm", steps, config | {"variance_type": variance_type}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [7, 10, 50, 1000])
    @pytest.mark.parametrize("spacing", ["leading", "linspace"])
    def test_ddpm_with_the_large_variance(self, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"variance_type": "fixed_large", "timestep_spacing": spacing}
        assert max(differences("ddpm", steps, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
    def test_ddpm_over_every_timestep(self, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddpm", 1000, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [7, 30, 600])
    @pytest.mark.parametrize("config", [STABLE_DIFFUSION | {"clip_sample": True}, ZERO_SNR], ids=str)
    def test_ddpm_of_other_schedules_and_counts(self, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("ddpm", steps, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [2, 3, 10, 50])
    @pytest.mark.parametrize(("name", "config"), UNCLIPPED, ids=str)
    def test_samplers_that_do_not_clip(self, name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, steps, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [4, 30, 499])
    @pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, COSINE | {"prediction_type": "v_prediction"}], ids=str)
    @pytest.mark.parametrize("name", OF_BETAS[2:])
    def test_them_of_other_schedules_and_counts(
        self, name: str, schedule: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert max(differences(name, steps, schedule, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("name", [*DPM, "euler", "euler-ancestral"])
    def test_zero_terminal_snr(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, 20, ZERO_SNR, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("name", OF_BETAS[2:])
    def test_a_single_step(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, 1, {"timestep_spacing": "trailing"}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("set_alpha_to_one", [False, True])
    def test_where_plms_ends(self, set_alpha_to_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        config = STABLE_DIFFUSION | {"set_alpha_to_one": set_alpha_to_one}
        assert max(differences("plms", 12, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [5, 14, 15, 30])
    @pytest.mark.parametrize(
        "config",
        configs(
            solver_type=["midpoint", "heun"],
            final_sigmas_type=["zero", "sigma_min"],
            lower_order_final=[False, True],
            euler_at_final=[False, True],
        ),
        ids=str,
    )
    @pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m-sde"])
    def test_dpm_solver_in_every_form(self, name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, steps, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("spacing", ["leading", "linspace"])
    @pytest.mark.parametrize("name", DPM)
    def test_dpm_solver_from_a_bounded_level(self, name: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": spacing}
        assert max(differences(name, 12, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [5, 30])
    @pytest.mark.parametrize("config", [STABLE_DIFFUSION, COSINE], ids=str)
    @pytest.mark.parametrize("name", [*DPM, "euler"])
    def test_karras_levels(self, name: str, config: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, steps, config | {"use_karras_sigmas": True}, monkeypatch)) <= TOLERANCE

    def test_euler_to_the_least_level(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("euler", 12, {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [1, 4, 28, 1000])
    @pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
    def test_flow(self, shift: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("flow-euler", steps, {"shift": shift}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [1, 2, 4, 8])
    @pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "flow-euler"])
    def test_few_steps(self, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {} if name in ("lcm", "tcd") else STABLE_DIFFUSION | {"timestep_spacing": "trailing"}
        config |= {"clip_sample": False} if name in ("ddim", "ddpm") else {}  # the only step of a chain would end on the bound
        assert max(differences(name, steps, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("name", NEW)
    def test_samplers_of_few_steps_or_high_order(
        self, name: str, spacing: str, prediction_type: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = {"timestep_spacing": spacing, "prediction_type": prediction_type}
        assert max(differences(name, 6, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("name", ["unipc2", "unipc3", "deis2", "deis3", "heun"])
    def test_many_steps_of_high_order(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, 120, STABLE_DIFFUSION, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("name", ["heun", "lcm"])
    def test_clipping_of_few_steps(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, 5, {"clip_sample": True, "clip_sample_range": 0.8}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
    def test_tcd_of_every_share_of_noise(self, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences("tcd", 4, {"original_inference_steps": 40}, monkeypatch, eta)) <= TOLERANCE

    def test_lcm_of_another_distillation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"original_inference_steps": 30, "timestep_scaling": 0.01, "set_alpha_to_one": False}
        assert max(differences("lcm", 7, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize(
        "config",
        [
            {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
            ZERO_SNR,
        ],
        ids=str,
    )
    @pytest.mark.parametrize("name", ["unipc2", "unipc3"])
    def test_unipc_in_every_form(self, name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, 9, config, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [14, 15])
    @pytest.mark.parametrize("lower_order_final", [False, True])
    @pytest.mark.parametrize("name", ["deis2", "deis3"])
    def test_the_end_of_deis(self, name: str, lower_order_final: bool, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, steps, {"lower_order_final": lower_order_final}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
    @pytest.mark.parametrize("name", [name for name in SCHEDULERS if SAMPLERS[name].row_of is not None])
    def test_a_late_start(self, name: str, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"shift": 3.0} if name == "flow-euler" else STABLE_DIFFUSION
        config = config | ({"clip_sample": False} if name in ("ddim", "ddpm") else {})
        assert late_differences(name, 20, strength, config, monkeypatch) <= TOLERANCE

    @pytest.mark.parametrize("name", ["dpm++2m", "unipc2", "unipc3"])
    def test_a_late_start_on_a_flow(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert late_differences(name, 20, 0.6, FLOW, monkeypatch) <= TOLERANCE

    @pytest.mark.parametrize("steps", [1, 9])
    @pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
    @pytest.mark.parametrize("name", ["dpm++2m", "dpm++2m-sde", "unipc2", "euler", "heun", "flow-euler"])
    def test_spaced_levels(self, name: str, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        config = {"shift": 3.0} if name == "flow-euler" else STABLE_DIFFUSION
        assert max(differences(name, steps, config | {spacing: True}, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
    @pytest.mark.parametrize("name", [*DPM, "unipc2", "unipc3"])
    def test_multistep_methods_on_a_flow(self, name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        assert max(differences(name, steps, FLOW, monkeypatch)) <= TOLERANCE

    @pytest.mark.parametrize("name", ["ddpm", "dpm++1", "dpm++2m", "dpm++2m-sde", "euler", "heun", "lcm", "tcd"])
    def test_timesteps_of_the_users_choice(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = {"timesteps": [999.0, 850.0, 736.0, 500.0, 263.0, 80.0]}
        assert max(differences(name, 6, {}, monkeypatch, chosen=chosen)) <= TOLERANCE

    @pytest.mark.parametrize(
        ("name", "config", "sigmas"),
        [
            ("euler", {}, [14.6, 6.5, 2.9, 1.2, 0.4]),
            ("euler", {"timestep_spacing": "leading"}, [9.0, 1.5]),
            ("flow-euler", {"shift": 3.0}, [1.0, 0.75, 0.5, 0.25]),
        ],
        ids=str,
    )
    def test_noise_levels_of_the_users_choice(
        self, name: str, config: dict[str, Any], sigmas: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert max(differences(name, len(sigmas), config, monkeypatch, chosen={"sigmas": sigmas})) <= TOLERANCE

    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"])
    def test_the_alphas_themselves(self, schedule: str) -> None:
        theirs = diffusers.DDPMScheduler(beta_schedule=schedule).alphas_cumprod
        assert theirs.dtype == torch.float64
        np.testing.assert_allclose(alpha_bar(NoiseSchedule(beta_schedule=schedule)), theirs, rtol=1e-11)  # type: ignore[arg-type]  # one of them


@pytest.mark.parametrize("steps", [10, 50, 1000])
@pytest.mark.parametrize(("name", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddim", 1.0), ("ddpm", None)])
@pytest.mark.parametrize("config", LONG_CONFIGS, ids=str)
def test_the_finished_sample_in_float32(
    config: dict[str, Any], name: str, eta: float | None, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In mid-chain diffusers' own float32 coefficients are up to 9e-5 away from its float64 ones (DDPM, 1000 steps).
    assert differences(name, steps, config, monkeypatch, eta, np.float32)[-1] <= 5e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("name", [*OF_BETAS[2:], *NEW, "flow-euler"])
def test_few_steps_in_float32(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {} if name in ("flow-euler", "lcm", "tcd") else STABLE_DIFFUSION | {"timestep_spacing": "trailing"}
    assert differences(name, steps, config, monkeypatch, None, np.float32)[-1] <= 1e-5


@pytest.mark.parametrize("name", [*OF_BETAS[2:], *NEW, "flow-euler"])
def test_the_finished_sample_of_the_others_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {} if name == "flow-euler" else STABLE_DIFFUSION
    assert differences(name, 25, config, monkeypatch, None, np.float32)[-1] <= 5e-5


def test_clipping_changes_the_chain() -> None:
    noise = noise_of(10, np.float64)
    free, clipped = (list(walk_table(compile_sampler("ddim", 10, 0.5, NoiseSchedule(clip_sample=clip)), noise)) for clip in (False, True))
    assert np.abs(free[-1]).max() > 1
    assert np.abs(clipped[-1]).max() <= 1
