"""The mode `auto` on Gaussian data, where the best correction is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from calib.correction.correction_fit import BOTH_PARTS, Mode
from calib.correction.step_fit import CorrectionChoice
from calib.walk.calibration_samples import CalibrationSamples
from calib.walk.end_choice import MOST_ROUND, ROUNDS, choose_by_end, chosen_of, end_evaluations, round_size
from calib.walk.fit import PAIRED_SHARE, FitNetworks, FitSettings, FittedChain, fit_on_walk
from calib.walk.policy import FixedPolicy
from calib.walk.race import MARGIN, Race
from engines.arrays import Float32, Float64, Int64
from engines.chain.denoiser import Denoiser
from engines.chain.noise import NoiseSource
from engines.chain.schedule import JudgedCorrection, SamplerRecord
from engines.samplers import NoiseSchedule
from tests.calib.walk.gaussian_walk import Exact

STEPS, SAMPLES, ROWS, SHAPE = 6, 128, 4096, (3, 4, 4)


@dataclass(frozen=True)
class Noisy:
    """`q = (1 + k) e + noise n`; the noise is the sample's own."""

    k: float = 0.0
    noise: float = 0.0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        e = Exact()(x, timestep, rows)
        return ((1 + self.k) * e + self.noise * _noise_of(timestep)[rows]).astype(np.float32)


@cache
def _noise_of(timestep: float) -> Float64:
    """Noise at a timestep by row, so that it does not depend on the batch."""
    return np.random.default_rng(int(timestep)).standard_normal((ROWS, *SHAPE))


@dataclass(frozen=True)
class Broken:
    """Returns NaN at states with more variance than the walk visits: in chains without a correction."""

    limit: float

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        out = Noisy(k=-0.5)(x, timestep, rows)
        return np.where(float(x.std()) > self.limit, np.nan, out).astype(np.float32)


@dataclass(frozen=True)
class SpiedNoise(NoiseSource):
    """Records the numbers of the samples that are started."""

    started: list[int] = field(default_factory=list)

    def start(self, samples: Int64) -> Float32:
        self.started.extend(samples.tolist())
        return super().start(samples)


def _settings(eta: float, chosen: tuple[str, ...] = ("low",) * STEPS) -> FitSettings:
    return FitSettings(
        sampler=SamplerRecord(name="ddim", steps=STEPS, eta=eta, guidance=1.0),
        noise_schedule=NoiseSchedule(clip_sample=False),
        mode="auto",
        variance="schedule",
        parts=BOTH_PARTS,
        policy="fixed",
        choose=FixedPolicy(chosen),
        samples=CalibrationSamples(SpiedNoise(5, SHAPE), ROWS, SAMPLES),
        trajectory="quantized",
        batch_size=64,
    )


def _chosen(settings: FitSettings, folder: Path, **quantized: Denoiser) -> FittedChain:
    networks = FitNetworks({"fp32": Exact(), **quantized}, "fp32")
    return choose_by_end(networks, fit_on_walk(networks, settings, folder, lambda: None))


def _taken(chain: FittedChain, name: str | None) -> JudgedCorrection:
    (taken,) = (each for each in chain.judged if each.chain == name and each.chosen)
    return taken


def test_an_attenuation_is_undone(tmp_path: Path) -> None:
    """Without a residual the inverse of 1 + k is exact; the paper's gain clamps a negative k to 0."""
    found = _chosen(_settings(eta=0.0), tmp_path, low=Noisy(k=-0.2, noise=0.002))
    assert _taken(found, "low").correction.mode in ("signed", "joint")
    left = [step.corrections["low"].residual_variance for step in found.schedule.steps[:-1]]  # the last uses next to nothing of the output
    np.testing.assert_allclose(left, (0.002 / 0.8) ** 2, rtol=0.2)


def test_the_picture_is_judged(tmp_path: Path) -> None:
    """Where a picture shows nothing of the noise, every chain ends as near as without a correction; else the attenuation is undone."""
    networks = FitNetworks({"fp32": Exact(), "low": Noisy(k=-0.2, noise=0.002)}, "fp32")
    fitted = fit_on_walk(networks, _settings(eta=0.0), tmp_path, lambda: None)
    taken = {"samples": None, "half": lambda samples: samples / 2, "blank": lambda samples: np.zeros_like(samples[:, :1])}
    found = {name: _taken(choose_by_end(replace(networks, pictured=pictured), fitted), "low") for name, pictured in taken.items()}
    assert found["half"].correction == found["samples"].correction
    assert found["half"].error_db == pytest.approx(found["samples"].error_db - 20 * np.log10(2), abs=1e-3)
    assert found["blank"].correction.mode == "none"


@pytest.mark.parametrize(("lead", "chosen"), [(0.1, "none"), (0.3, "joint"), (2.0, "joint")])
def test_no_correction_gives_way_to_a_clear_lead_alone(lead: float, chosen: Mode) -> None:
    """The lead has a standard error of 0.38 dB. A correction that is beaten is no alternative."""
    spread = np.array([1.0, -1.0] * 4)
    none, joint, beaten = CorrectionChoice("none"), CorrectionChoice("joint"), CorrectionChoice("ptqd")
    errors = {none: spread, joint: np.zeros(8) - lead, beaten: np.full(8, 5.0)}
    found = chosen_of(Race(errors, [none, joint]))
    assert found == CorrectionChoice(chosen)


def test_fresh_noise_is_kept_where_pairs_end_nearer_with_it(tmp_path: Path) -> None:
    """Against white noise no gain helps. Less fresh noise restores the variance, but moves the sample away from its pair."""
    found = _chosen(replace(_settings(eta=1.0), trajectory="fp"), tmp_path, low=Noisy(noise=0.3))
    assert _taken(found, "low").correction.variance == "none"
    assert all(step.corrections["low"].sigma_corrected == step.sigma for step in found.schedule.steps)


def test_accumulated_error_of_the_policys_own_chain_is_corrected(tmp_path: Path) -> None:
    """Later steps make up for what earlier ones left in the state."""
    found = _chosen(_settings(eta=0.0), tmp_path, low=Noisy(k=-0.1, noise=0.3))
    chain = next(each for each in found.judged if "chain" in each.correction.parts)
    joint = next(each for each in found.judged if each.correction.label == "joint")
    assert chain.error_db < joint.error_db
    assert found.schedule.corrects("low")


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("network", [Noisy(k=-0.1, noise=0.2), Noisy(k=0.1, noise=0.1), Noisy(noise=0.05)])
def test_never_worse_than_none_or_the_papers(network: Noisy, eta: float, tmp_path: Path) -> None:
    found = _chosen(_settings(eta), tmp_path, low=network)
    for mode in ("none", "ptqd"):
        for each in (each for each in found.judged if each.correction.mode == mode):
            assert each.behind_db >= -MARGIN * each.standard_error_db


def test_proposals_that_take_the_same_steps_are_judged_once(tmp_path: Path) -> None:
    found = _chosen(replace(_settings(eta=0.0), trajectory="fp"), tmp_path, low=Noisy(noise=0.1))
    kinds = [(each.correction.mode, each.correction.parts) for each in found.judged]
    assert len(set(kinds)) == len(kinds)
    assert {each.correction.variance for each in found.judged} == {"none"}


def test_judged_samples_are_held_out_of_the_walk(tmp_path: Path) -> None:
    settings = _settings(eta=1.0)
    _chosen(settings, tmp_path, low=Noisy(noise=0.1))
    assert isinstance(settings.samples.noise, SpiedNoise)
    judged = settings.samples.noise.started[SAMPLES + SAMPLES // PAIRED_SHARE :]  # after the walk and the full-precision chain beside it
    assert set(judged) <= set(range(SAMPLES, SAMPLES + MOST_ROUND * ROUNDS))
    assert judged


def test_chain_that_diverges_is_far_behind(tmp_path: Path) -> None:
    found = _chosen(_settings(eta=0.0), tmp_path, low=Broken(limit=1.2))
    none = next(each for each in found.judged if each.correction.mode == "none")
    assert none.error_db > 100
    assert _taken(found, "low").error_db < 0


def test_mixed_chain_is_judged_with_every_precisions_own_correction(tmp_path: Path) -> None:
    mixed = ("low", "high") * (STEPS // 2)
    found = _chosen(_settings(1.0, mixed), tmp_path, low=Noisy(k=-0.2, noise=0.1), high=Noisy(noise=0.01))
    assert {each.chain for each in found.judged} == {"low", "high", None}
    assert {each.chain for each in found.judged if "chain" in each.correction.parts} == {None}, "nobody saw the others accumulate an error"
    taken = _taken(found, None)
    assert (found.mixed is None) == (taken.correction.mode == "auto")
    assert all(each.behind_db >= -MARGIN * each.standard_error_db for each in found.judged if each.chain is None)


def test_one_proposal_for_the_mixed_chain_is_kept_beside_those_of_the_precisions(tmp_path: Path) -> None:
    networks = FitNetworks({"fp32": Exact(), "low": Noisy(k=-0.2), "high": Noisy(k=-0.1)}, "fp32")
    fitted = fit_on_walk(networks, _settings(1.0, ("low", "high") * (STEPS // 2)), tmp_path, lambda: None)
    none, signed = CorrectionChoice("none"), CorrectionChoice("signed")
    schedule = replace(fitted.corrected_by({"low": none, "high": none}), mixed=signed).schedule
    for step in schedule.steps:
        assert step.corrections["low"].gain == (1.0, 1.0, 1.0)
        assert step.chosen_correction.gain == pytest.approx([1 / (0.8 if step.precision == "low" else 0.9)] * 3, rel=1e-3)


@dataclass
class Counted:
    """A network that counts the samples that it is given."""

    network: Denoiser
    samples: int = 0

    def __call__(self, x: Float32, timestep: float, rows: Int64) -> Float32:
        self.samples += len(x)
        return self.network(x, timestep, rows)


@pytest.mark.parametrize("chosen", [("low",) * STEPS, ("low", "high") * (STEPS // 2)], ids=["one precision", "mixed"])
@pytest.mark.parametrize("samples", [64, 128, 512])
def test_a_choice_costs_at_most_half_of_the_walk_more(samples: int, chosen: tuple[str, ...], tmp_path: Path) -> None:
    settings = replace(_settings(1.0, chosen), samples=CalibrationSamples(NoiseSource(5, SHAPE), ROWS, samples))
    quantized = {"low": Noisy(k=-0.1, noise=0.1), "high": Noisy(noise=0.05)}
    networks = {"fp32": Counted(Exact()), **{name: Counted(quantized[name]) for name in dict.fromkeys(chosen)}}
    chain, told = fit_on_walk(FitNetworks(networks, "fp32"), settings, tmp_path, lambda: None), list[None]()
    walked = sum(network.samples for network in networks.values())
    assert walked == STEPS * (len(networks) * samples + samples // PAIRED_SHARE)
    choose_by_end(FitNetworks(networks, "fp32"), chain, lambda: told.append(None))
    assert len(told) * round_size(settings) == sum(network.samples for network in networks.values()) - walked
    assert 0 < len(told) <= end_evaluations(settings, len(networks))
    assert sum(network.samples for network in networks.values()) <= 1.5 * STEPS * len(networks) * samples


def test_without_fresh_noise_given_up_the_winner_is_judged_too(tmp_path: Path) -> None:
    """Each correction races with the plan's variance schedule, and the first round's winner without it too; no correction the other way."""
    found = _chosen(_settings(eta=1.0), tmp_path, low=Noisy(k=-0.2, noise=0.1))
    of_mode = {mode: {each.correction.variance for each in found.judged if each.correction.mode == mode} for mode in ("none", "ptqd")}
    assert "none" in of_mode["none"]
    assert "schedule" in of_mode["ptqd"]
    kinds = [_kinds(found, kin) for kin in {(each.correction.mode, each.correction.parts) for each in found.judged}]
    assert kinds.count({"none", "schedule"}) == 1


def _kinds(chain: FittedChain, kin: tuple[str, tuple[str, ...]]) -> set[str]:
    return {each.correction.variance for each in chain.judged if (each.correction.mode, each.correction.parts) == kin}


def test_mixed_chain_is_never_judged_without_no_correction_and_the_papers(tmp_path: Path) -> None:
    found = _chosen(_settings(1.0, ("low", "high") * (STEPS // 2)), tmp_path, low=Noisy(k=-0.2, noise=0.1), high=Noisy(noise=0.01))
    judged = [each.correction for each in found.judged if each.chain is None]
    assert {"none", "ptqd", "auto"} <= {correction.mode for correction in judged}
    assert sum("chain" in correction.parts for correction in judged) == 1
