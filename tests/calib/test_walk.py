"""Walks over Gaussian data, where the exact noise prediction is known, with planted quantization noise in place of a network's.

With `x0 ~ N(m_c, S^2)` in every pixel, `eps = sqrt(1 - a) (x - sqrt(a) m_c) / (a S^2 + 1 - a)`.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calib.correction_fit import Mode
from calib.moments import GUIDED, Moments
from calib.noise_fit import fit_noise
from calib.policy import FixedPolicy, Policy, SnrPolicy
from calib.step_fit import CorrectionChoice
from calib.walk import StepResult, Walk, WalkPlan
from engines.arrays import Float32, Float64, Int64
from engines.denoiser import Denoiser
from engines.errors import PtqdError
from engines.noise import NoiseSource
from engines.samplers.table import SamplerTable
from engines.sampling import Chain
from engines.schedule import Correction, CorrectionRecord, SamplerRecord, Schedule, Step
from engines.update import update

STEPS = 20
SHAPE = (3, 4, 4)
MEAN, S = np.array([0.5, -0.3, 0.0]), 1.0
K, MU, S2 = np.array([-0.15, 0.1, -0.05]), np.array([0.2, -0.1, 0.05]), 0.01
ALPHA_BAR: Float64 = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000), dtype=np.float64)


def _ddim(eta: float = 1.0, steps: int = STEPS) -> SamplerTable:
    """DDIM (arXiv 2010.02502, equation 12) by this test's own arithmetic."""
    timestep = np.arange(steps)[::-1] * (1000 // steps)
    a = ALPHA_BAR[timestep]
    previous = np.append(a[1:], 1.0)
    sigma = eta * np.sqrt((1 - previous) / (1 - a) * (1 - a / previous))
    A = np.sqrt(previous / a)
    B = np.sqrt(np.maximum(1 - previous - sigma**2, 0)) - A * np.sqrt(1 - a)
    return SamplerTable(
        name="ddim", timestep=timestep.astype(np.float64), alpha_bar=a, x_coeff=A, out_coeff=B,
        prediction_coeffs=np.stack([1 / np.sqrt(a), -np.sqrt(1 - a) / np.sqrt(a)], axis=1),
        epsilon_coeffs=np.tile([0.0, 1.0], (steps, 1)), history_coeffs=np.empty((steps, 0)),
        sigma=sigma, input_scale=np.ones(steps), init_sigma=1.0, clip=None,
    )  # fmt: skip


def _clipped(table: SamplerTable, clip: float, history: int = 1) -> SamplerTable:
    """`x <- A x + B out` with its `C x0` part taken out of it as `C` times clipped predictions, the older ones with falling weight."""
    C = np.sqrt(np.append(table.alpha_bar[1:], 1.0))
    weights = np.array([1.0]) if history == 1 else np.array([1.5, -0.5])
    return replace(
        table, clip=clip, history_coeffs=C[:, None] * weights,
        x_coeff=table.x_coeff - C * table.prediction_coeffs[:, 0], out_coeff=table.out_coeff - C * table.prediction_coeffs[:, 1],
    )  # fmt: skip


def _column(per_channel: Float64) -> Float64:
    return per_channel.reshape(-1, 1, 1)


def _slope(alpha_bar: float) -> float:
    """`c` of `eps = c (x - sqrt(a) m)`."""
    return math.sqrt(1 - alpha_bar) / (alpha_bar * S**2 + 1 - alpha_bar)


@dataclass
class Exact:
    """The full-precision network: `eps` in closed form. Writes down the samples of every call."""

    mean: Float64 = field(default_factory=lambda: MEAN)
    calls: list[tuple[float, Int64]] = field(default_factory=list)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.calls.append((timestep, rows))
        a = float(ALPHA_BAR[int(timestep)])
        return (_slope(a) * (x - math.sqrt(a) * _column(self.mean)))[None].astype(np.float32)


@cache
def _noise_of(timestep: float, seed: int) -> Float64:
    """[samples, *SHAPE] the planted noise at a timestep: a table by row, so that it does not depend on the batch."""
    return np.random.default_rng([int(timestep), seed]).standard_normal((2048, *SHAPE))


@dataclass
class Planted:
    """A quantized network, `q = (1 + k_c) e + mu_c + sqrt(s2) n`."""

    reference: Denoiser
    s2: float = S2
    seed: int = 0
    calls: list[tuple[float, Int64]] = field(default_factory=list)

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.calls.append((timestep, rows))
        e = self.reference(x, timestep, rows)
        q: Float64 = _column(1 + K) * e + _column(MU) + math.sqrt(self.s2) * _noise_of(timestep, self.seed)[rows]
        return q.astype(np.float32)


def _plan(
    samples: int = 48,
    table: SamplerTable | None = None,
    mode: Mode = "signed",
    policy: Policy = SnrPolicy(("low", "high")),  # noqa: B008 - frozen
) -> WalkPlan:
    return WalkPlan(
        table=table or _ddim(),
        reference=Exact(),
        quantized={"low": Planted(Exact(), s2=0.04, seed=1), "high": Planted(Exact())},
        noise=NoiseSource(seed=7, shape=SHAPE),
        rows=np.arange(samples, dtype=np.int64),
        policy=policy,
        correction=CorrectionChoice(mode),
        batch_size=32,
    )


def _always(name: str) -> Policy:
    return FixedPolicy((name,) * STEPS)


def _take(
    plan: WalkPlan, folder: Path, observe: Callable[[StepResult, Float32], None] = lambda *_: None
) -> tuple[list[StepResult], Float32]:
    """All results, and the final states; `observe` sees each result with the states that it was fitted on."""
    results = []
    with Walk(plan, folder) as walk:
        for result in walk:
            observe(result, walk.states)
            results.append(result)
        return results, np.array(walk.states)


# What the walk is for: the corrected chain keeps the variance and the mean of the full-precision one.

POPULATION = 2048


def _variances(mode: Mode, folder: Path, variance: bool) -> tuple[list[StepResult], Float64, Float64]:
    """Results, and the state's variance within channels [STEPS] and mean [STEPS, C] after each step."""
    plan = _plan(POPULATION, mode=mode, policy=_always("high"))
    plan = replace(plan, correction=CorrectionChoice(mode, "schedule" if variance else "none"), batch_size=512)
    states: list[Float64] = []
    results, final = _take(plan, folder, lambda _, x: states.append(np.array(x, np.float64)))
    after = [*states[1:], final.astype(np.float64)]
    axes = (0, 2, 3)
    return results, np.array([x.var(axis=axes).mean() for x in after]), np.array([x.mean(axis=axes) for x in after])


def _exact_chain(unabsorbed: Float64) -> tuple[Float64, Float64]:
    """The full-precision chain's variance [STEPS] and mean [STEPS, C] in closed form, with variance added at each step."""
    table, variance, mean = _ddim(), 1.0, np.zeros(3)
    variances, means = [], []
    for i, a in enumerate(table.alpha_bar):
        A, B, c = table.x_coeff[i], table.out_coeff[i], _slope(a)
        variance = (A + B * c) ** 2 * variance + table.sigma[i] ** 2 + unabsorbed[i]
        mean = A * mean + B * c * (mean - math.sqrt(a) * MEAN)
        variances.append(variance)
        means.append(mean)
    return np.array(variances), np.array(means)


VALUES = POPULATION * math.prod(SHAPE)
BOUND = 5 * math.sqrt(2 / VALUES)


@pytest.mark.parametrize("mode", ["signed", "joint", "mmse"])
def test_the_corrected_chain_keeps_the_variance_and_the_mean_of_full_precision(mode: Mode, tmp_path: Path) -> None:
    results, variances, means = _variances(mode, tmp_path, variance=True)
    unabsorbed = np.array([result.corrections["high"].unabsorbed_variance for result in results])
    exact, exact_means = _exact_chain(np.zeros(STEPS))
    np.testing.assert_allclose(variances, exact, rtol=BOUND)
    np.testing.assert_allclose(variances, _exact_chain(unabsorbed)[0], rtol=BOUND)
    assert np.all(unabsorbed[:17] == 0)
    np.testing.assert_allclose(means, exact_means, atol=5 * math.sqrt(exact.max() / (VALUES / 3)))


def test_the_uncorrected_chain_keeps_neither(tmp_path: Path) -> None:
    _, variances, means = _variances("none", tmp_path, variance=False)
    exact, exact_means = _exact_chain(np.zeros(STEPS))
    assert np.all(np.abs(variances / exact - 1)[2:] > 2 * BOUND)
    assert np.all(np.abs(means - exact_means)[2:, 0] > 10 * math.sqrt(exact.max() / (VALUES / 3)))


def test_the_planted_noise_is_found_at_every_step(tmp_path: Path) -> None:
    plan = replace(_plan(512, policy=_always("high")), batch_size=256)
    results, _ = _take(plan, tmp_path)
    per_channel = 512 * 16
    for result in results:
        e = result.moments["high"].variance("e")
        k_error = np.sqrt(S2 / (per_channel * e))
        assert np.all(np.abs(result.noise["high"].k_channel - K) < 5 * k_error)
        affine = result.corrections["high"].affine
        believed = affine.gain != 1
        assert np.all(np.abs(affine.gain * (1 + K) - 1)[believed] < 7 * k_error[believed])
        assert result.corrections["high"].residual_variance == pytest.approx(np.mean(S2 * affine.gain**2), rel=0.25)
    gains = np.array([result.corrections["high"].affine.gain for result in results])
    assert np.mean(gains != 1) > 0.6, "the early steps have a strong correlation"


# What is recorded can be computed again.


@pytest.mark.parametrize("name", ["low", "high"])
def test_sigma_follows_from_the_stored_moments(name: str, tmp_path: Path) -> None:
    table = _ddim()
    results, _ = _take(_plan(), tmp_path)
    differs = 0
    for result in results:
        stored = result.moments[name].to_json()
        count, mean, scatter = np.array(stored["count"]), np.array(stored["mean"]), np.array(stored["scatter"])
        pooled = (count[:, None, None] * mean).sum(axis=0) / count.sum()
        delta = mean - pooled
        covariance = (scatter + np.einsum("f,fci,fcj->fcij", count, delta, delta)).sum(axis=0) / count.sum()
        A, B, sigma = table.x_coeff[result.step], table.out_coeff[result.step], table.sigma[result.step]
        correction = result.corrections[name]
        reference = corrected = 0.0
        for channel, gain in enumerate(correction.affine.gain):
            plain, changed = np.array([A, B, 0]), np.array([A, B * gain, B * gain])
            reference += plain @ covariance[channel] @ plain / 3
            corrected += changed @ covariance[channel] @ changed / 3
        expected = math.sqrt(max(sigma**2 + reference - corrected, 0)) if sigma else 0.0
        assert correction.sigma_corrected == pytest.approx(expected, rel=1e-8, abs=1e-12)
        assert correction.unabsorbed_variance == pytest.approx(max(corrected - reference - sigma**2, 0), rel=1e-8, abs=1e-12)
        differs += abs(correction.sigma_corrected - sigma) > 1e-4
    assert differs > STEPS / 2


def test_a_deterministic_chain_stays_deterministic(tmp_path: Path) -> None:
    results, _ = _take(_plan(table=_ddim(eta=0.0)), tmp_path)
    corrections = [correction for result in results for correction in result.corrections.values()]
    assert all(correction.sigma_corrected == 0 for correction in corrections)
    assert any(correction.unabsorbed_variance > 0 for correction in corrections)


@pytest.mark.parametrize(("clip", "history"), [(0.6, 1), (0.6, 2), (100.0, 2)])
def test_with_clipping_or_history_the_variance_of_the_whole_step_is_measured(clip: float, history: int, tmp_path: Path) -> None:
    table, exact = _clipped(_ddim(), clip, history), Exact()
    plan = _plan(table=table, policy=_always("high"))
    earlier: tuple[Float64, Float64] | None = None

    def check(result: StepResult, states: Float32) -> None:
        nonlocal earlier
        step, x = table.step(result.step), np.array(states)
        (A, B), (P, Q) = (step.x_coeff, step.out_coeff), step.prediction_coeffs
        affine = result.corrections["high"].affine
        e = exact(x, result.timestep, plan.rows)[0].astype(np.float64)
        q = plan.quantized["high"](x, result.timestep, plan.rows)[0].astype(np.float64)
        outs = (e, _column(affine.gain) * q + _column(affine.offset))
        of_exact, of_corrected = (np.clip(P * x + Q * out, -clip, clip) for out in outs)
        means = [A * x + B * out + step.history_coeffs[0] * m for out, m in zip(outs, (of_exact, of_corrected), strict=True)]
        if history == 2 and earlier:
            means = [mean + step.history_coeffs[1] * m for mean, m in zip(means, earlier, strict=True)]
        variances = [mean.var(axis=(0, 2, 3)).mean() for mean in means]
        earlier = of_exact, of_corrected
        expected = min(math.sqrt(max(step.sigma**2 + variances[0] - variances[1], 0)), step.sigma)
        assert result.corrections["high"].sigma_corrected == pytest.approx(expected, rel=1e-4, abs=1e-4)

    results, _ = _take(plan, tmp_path, check)
    assert len(results) == STEPS
    changed = [abs(result.corrections["high"].sigma_corrected - table.sigma[result.step]) > 1e-3 for result in results]
    assert sum(changed) >= 2, "the noise gives something up at some steps"


# The walk itself.


def test_every_network_is_evaluated_once_at_every_state(tmp_path: Path) -> None:
    plan = _plan(samples=70)
    plan = replace(plan, quantized={**plan.quantized, "fp32": plan.reference})
    _take(plan, tmp_path)
    timesteps = _ddim().timestep
    for network in (plan.reference, plan.quantized["low"], plan.quantized["high"]):
        assert isinstance(network, Exact | Planted)
        assert [timestep for timestep, _ in network.calls] == np.repeat(timesteps, 3).tolist()
        for step in range(STEPS):
            seen = [rows for _, rows in network.calls[3 * step : 3 * step + 3]]
            assert [len(rows) for rows in seen] == [32, 32, 6]
            np.testing.assert_array_equal(np.concatenate(seen), np.arange(70))


def test_a_precision_that_is_the_reference_needs_no_correction(tmp_path: Path) -> None:
    plan = _plan(policy=_always("fp32"))
    plan = replace(plan, quantized={"fp32": plan.reference, **plan.quantized})
    results, final = _take(plan, tmp_path)
    for result in results:
        correction = result.corrections["fp32"]
        assert (correction.affine.gain.tolist(), correction.affine.offset.tolist()) == ([1.0] * 3, [0.0] * 3)
        assert correction.sigma_corrected == pytest.approx(_ddim().sigma[result.step])
        assert (correction.residual_variance, correction.unabsorbed_variance) == (0, 0)
        assert result.noise["fp32"].snr_db == math.inf
    np.testing.assert_array_equal(final, _take(replace(plan, trajectory="fp"), tmp_path)[1])


def test_precisions_that_no_step_takes_can_be_left_out(tmp_path: Path) -> None:
    plan = _plan(policy=_always("high"))
    alone = replace(plan, quantized={"high": plan.quantized["high"]})
    (all_results, all_states), (results, states) = _take(plan, tmp_path), _take(alone, tmp_path)
    assert [list(result.corrections) for result in results] == [["high"]] * STEPS
    np.testing.assert_array_equal(states, all_states)
    for one, other in zip(results, all_results, strict=True):
        np.testing.assert_array_equal(one.moments["high"].scatter, other.moments["high"].scatter)


def test_batch_size_does_not_matter_beyond_rounding(tmp_path: Path) -> None:
    plan = _plan(table=_clipped(_ddim(), clip=1.5, history=2), policy=_always("high"))
    (small, small_states), (large, large_states) = (_take(replace(plan, batch_size=size), tmp_path) for size in (7, 48))
    np.testing.assert_allclose(small_states, large_states, atol=2e-4)
    for one, other in zip(small, large, strict=True):
        assert one.moments["low"].samples.tolist() == other.moments["low"].samples.tolist() == [12] * 4
        np.testing.assert_allclose(one.moments["low"].scatter, other.moments["low"].scatter, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(one.corrections["low"].affine.gain, other.corrections["low"].affine.gain, atol=1e-4)
        assert one.corrections["low"].sigma_corrected == pytest.approx(other.corrections["low"].sigma_corrected, abs=1e-4)


def test_the_fp_trajectory_is_that_of_the_full_precision_sampler(tmp_path: Path) -> None:
    plan = _plan()
    table, noise, samples = plan.table, plan.noise, plan.rows
    visited: list[Float32] = []
    _, final = _take(replace(plan, trajectory="fp"), tmp_path, lambda _, states: visited.append(np.array(states)))
    x, exact = noise.start(samples), Exact()
    for i in range(STEPS):
        np.testing.assert_array_equal(visited[i], x)
        x, _ = update(x, exact(x, table.timestep[i], samples)[0], table.step(i), [])
        x = x + np.float32(table.sigma[i]) * noise.step(i, samples) if table.sigma[i] else x
    np.testing.assert_array_equal(final, x)
    assert np.abs(final - _take(plan, tmp_path)[1]).max() > 0.01


def _schedule(plan: WalkPlan, results: list[StepResult]) -> Schedule:
    steps = []
    for result in results:
        row = plan.table.step(result.step)
        corrections = {
            name: Correction(
                gain=tuple(fit.affine.gain.tolist()), offset=tuple(fit.affine.offset.tolist()),
                state_gain=tuple(fit.affine.state_gain.tolist()), sigma_corrected=fit.sigma_corrected,
                residual_variance=fit.residual_variance, unabsorbed_variance=fit.unabsorbed_variance,
            )
            for name, fit in result.corrections.items()
        }  # fmt: skip
        steps.append(Step(
            step=result.step, timestep=result.timestep, precision=result.chosen, x_coeff=row.x_coeff, out_coeff=row.out_coeff,
            prediction_coeffs=row.prediction_coeffs, history_coeffs=row.history_coeffs, input_scale=row.input_scale, sigma=row.sigma,
            clip=row.clip, corrections=corrections,
        ))  # fmt: skip
    return Schedule(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=1.0, guidance=plan.guidance),
        correction=CorrectionRecord(mode="signed", variance="schedule"),
        policy="fixed", init_sigma=plan.table.init_sigma, steps=tuple(steps),
    )  # fmt: skip


@pytest.mark.parametrize(
    "table", [_ddim(), replace(_clipped(_ddim(), clip=1.5, history=2), init_sigma=1.3, input_scale=np.full(STEPS, 0.9))]
)
def test_the_run_time_retraces_the_walk(table: SamplerTable, tmp_path: Path) -> None:
    mixed = FixedPolicy(("low",) * 8 + ("high",) * 12)
    plan = replace(_plan(table=table, policy=mixed), batch_size=48)
    results, final = _take(plan, tmp_path)
    assert [result.chosen for result in results] == list(mixed.precisions)
    chain = Chain(_schedule(plan, results), plan.quantized)
    np.testing.assert_array_equal(chain.sample(NoiseSource(seed=7, shape=SHAPE), plan.rows, plan.rows), final)


def test_the_policy_decides_who_takes_the_step(tmp_path: Path) -> None:
    low, high = (_take(_plan(policy=_always(name)), tmp_path)[1] for name in ("low", "high"))
    assert np.abs(low - high).max() > 0.01
    chosen = [result.chosen for result in _take(_plan(), tmp_path)[0]]
    assert (chosen[0], chosen[-1]) == ("low", "high")


@dataclass
class Guided:
    """A network of two branches, or their combination where a guidance scale is given."""

    conditional: Denoiser
    unconditional: Denoiser
    guidance: float | None = None

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        c, u = self.conditional(x, timestep, rows)[0], self.unconditional(x, timestep, rows)[0]
        return np.stack([c, u]) if self.guidance is None else (u + self.guidance * (c - u))[None]


def _guided_plan(w: float | None) -> WalkPlan:
    here, there = Exact(MEAN), Exact(-MEAN)
    quantized = {"high": Guided(Planted(here), Planted(there, seed=1), w)}
    return replace(_plan(policy=_always("high")), reference=Guided(here, there, w), quantized=quantized)


def test_guided_statistics_are_those_of_the_guided_output(tmp_path: Path) -> None:
    branches, final = _take(replace(_guided_plan(None), guidance=1.5), tmp_path)
    combined, same = _take(_guided_plan(1.5), tmp_path)
    np.testing.assert_allclose(final, same, atol=1e-4)
    for one, other in zip(branches, combined, strict=True):
        assert one.moments["high"].variables == GUIDED
        assert one.noise["high"].k == pytest.approx(other.noise["high"].k, abs=1e-4)
        np.testing.assert_allclose(one.corrections["high"].affine.offset, other.corrections["high"].affine.offset, atol=1e-4)


def test_another_guidance_scale_follows_from_the_stored_moments(tmp_path: Path) -> None:
    stored = next(iter(_take(replace(_guided_plan(None), guidance=1.5), tmp_path)[0])).moments["high"].to_json()
    direct = next(iter(_take(_guided_plan(3.0), tmp_path)[0])).noise["high"]
    refitted = fit_noise(Moments.from_json(stored).guided(3.0))
    assert refitted.k == pytest.approx(direct.k, rel=1e-4)
    np.testing.assert_allclose(refitted.mu, direct.mu, rtol=1e-4)


def test_states_are_those_the_result_was_fitted_on_and_then_the_samples(tmp_path: Path) -> None:
    plan = replace(_plan(table=replace(_ddim(), init_sigma=2.5)), batch_size=10)
    with Walk(plan, tmp_path) as walk:
        taken = iter(walk)
        first = next(taken)
        np.testing.assert_array_equal(walk.states, np.float32(2.5) * plan.noise.start(plan.rows))
        assert walk.states.dtype == np.float32
        assert first.moments["low"].mean_of("x") == pytest.approx(np.array(walk.states, np.float64).mean(axis=(0, 2, 3)))
        before = np.array(walk.states)
        next(taken)
        assert np.abs(walk.states - before).max() > 0.01


def test_networks_see_the_scaled_state_and_moments_the_state(tmp_path: Path) -> None:
    @dataclass
    class Recorder:
        seen: list[Float32] = field(default_factory=list)

        def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
            del timestep, rows
            self.seen.append(x)
            return x[None]

    recorder = Recorder()
    table = replace(_ddim(), input_scale=np.full(STEPS, 0.25))
    plan = replace(_plan(table=table, policy=_always("fp32")), reference=recorder, quantized={"fp32": recorder})
    with Walk(plan, tmp_path) as walk:
        result = next(iter(walk))
        np.testing.assert_array_equal(np.concatenate(recorder.seen), np.float32(0.25) * walk.states)
    np.testing.assert_allclose(result.moments["fp32"].variance("x"), 16 * result.moments["fp32"].variance("e"), rtol=1e-6)


@pytest.mark.parametrize("broken", ["reference", "low"])
def test_outputs_that_are_not_finite_end_the_walk(broken: str, tmp_path: Path) -> None:
    def spoilt(x: Float32, timestep: float, rows: Int64) -> Float32:
        out = Exact()(x, timestep, rows)
        out[0, -1, 0, 0] = np.nan if timestep < 900 else 0.0
        return out

    plan = _plan()
    plan = replace(plan, reference=spoilt) if broken == "reference" else replace(plan, quantized={**plan.quantized, "low": spoilt})
    with pytest.raises(PtqdError, match=f"(?s){'full precision' if broken == 'reference' else 'low'}.*step 2"):
        _take(plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    with Walk(_plan(), folder) as walk:
        next(iter(walk))
        assert sum(path.stat().st_size for path in folder.rglob("*")) >= 4 * walk.states.nbytes
    assert list(folder.iterdir()) == []


def _peak_bytes(samples: int, folder: Path) -> int:
    plan = _plan(samples, table=_clipped(_ddim(steps=2), 1.0, 2), policy=FixedPolicy(("low", "low")))
    plan = replace(plan, quantized={"low": Exact()})
    tracemalloc.start()
    with Walk(plan, folder) as walk:
        assert len(list(walk)) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_samples(tmp_path: Path) -> None:
    few, many = _peak_bytes(64, tmp_path), _peak_bytes(2048, tmp_path)
    added_states = (2048 - 64) * math.prod(SHAPE) * 4
    assert many - few < 0.3 * added_states, "not even the states of the added samples once, and there are four such arrays"
