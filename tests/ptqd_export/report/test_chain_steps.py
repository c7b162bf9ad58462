"""Figures of every step against the bundle's own JSON files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.errors import BundleError
from ptqd_export.report.chain_steps import mean_of
from ptqd_export.report.content import Content
from ptqd_export.report.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ptqd_export.report.conftest import Reported

STATISTICS = "statistics/onnxruntime/w4a8.json"


@pytest.fixture(params=["reported", "reported_latent"])
def either(request: pytest.FixtureRequest) -> Reported:
    """Of one channel, or of four."""
    found: Reported = request.getfixturevalue(request.param)
    return found


def _content(reported: Reported) -> Content:
    return Content(reported.bundle, Evidence())


def test_the_chain_is_that_of_the_schedule(either: Reported) -> None:
    chain, steps = _content(either).chain, either.json("schedules/default.json")["steps"]
    for i, step in enumerate(steps):
        chosen = step["corrections"][step["precision"]]
        assert (chain.precision[i], chain.timestep[i], chain.sigma[i]) == (step["precision"], step["timestep"], step["sigma"])
        assert chain.sigma_corrected[i] == chosen["sigma_corrected"]
        assert chain.absorbed[i] == pytest.approx(step["sigma"] ** 2 - chosen["sigma_corrected"] ** 2, abs=1e-15)
        assert chain.unabsorbed[i] == chosen["unabsorbed_variance"]
    assert chain.draws_noise
    assert len(chain.precision) == len(steps) > 2


def test_the_chain_of_these_tests_absorbs_something(reported: Reported) -> None:
    assert max(_content(reported).chain.absorbed) > 0


def test_the_threshold_is_that_of_the_paper(reported: Reported) -> None:
    """An epsilon network's clean sample is `x / sqrt(a) - ...`, which tells `a` without the sampler's table."""
    chain, steps = _content(reported).chain, reported.json("schedules/default.json")["steps"]
    for threshold, step in zip(chain.threshold_db, steps, strict=True):
        alpha_bar = 1 / step["prediction_coeffs"][0] ** 2
        assert threshold == pytest.approx(20 * math.log10(alpha_bar / (1 - alpha_bar)))


def test_noise_figures_are_those_of_the_statistics(either: Reported) -> None:
    schedule, precisions = either.json("schedules/default.json")["steps"], _content(either).steps
    assert [steps.name for steps in precisions] == ["w4a8", "w8a8"]
    for steps in precisions:
        stored = either.statistics(steps.name)
        records: list[dict[str, Any]] = stored["steps"]
        for i, record in enumerate(records):
            shown = (steps.k[i], steps.r2[i], steps.snr_db[i], steps.corrected_snr_db[i])
            assert shown == tuple(record[key] for key in ("k", "r2", "snr_db", "corrected_snr_db"))
            assert steps.bias[i] == pytest.approx(math.sqrt(sum(mu**2 for mu in record["mu"]) / len(record["mu"])))
            assert steps.residual_variance[i] == schedule[i]["corrections"][steps.name]["residual_variance"]
            assert steps.epsilon_snr_db[i] == pytest.approx(record["corrected_snr_db"], abs=1e-6), "this network predicts the noise"
        assert [layer.model_dump(exclude_unset=True) for layer in steps.layers] == stored["layers"]


def test_another_prediction_is_turned_into_the_noise(own_reported: Reported) -> None:
    """Of a network that predicts the sample, `eps = (x - sqrt(a) m) / sqrt(1 - a)`: signal and noise by hand from the moments."""
    own_reported.edit("manifest.json", lambda manifest: manifest["model"]["noise_schedule"].update(prediction_type="sample"))
    content = _content(own_reported)
    alpha_bar = 1 / own_reported.json("schedules/default.json")["steps"][0]["prediction_coeffs"][0] ** 2
    record = own_reported.statistics("w8a8")["steps"][0]
    R, T = 1 / math.sqrt(1 - alpha_bar), -math.sqrt(alpha_bar / (1 - alpha_bar))
    power, noise = _powers(record["moments"], R, T, content.schedule.steps[0].corrections["w8a8"])
    assert content.steps[1].epsilon_snr_db[0] == pytest.approx(10 * math.log10(power / noise), abs=1e-6)
    assert content.steps[1].corrected_snr_db[0] == record["corrected_snr_db"]


def _powers(moments: dict[str, Any], R: float, T: float, correction: Any) -> tuple[float, float]:
    """Mean squares of `R x + T e` and of `T (e' - e)` at guidance 1.5, from raw second moments, fold by fold."""
    counts, means, scatters = (np.array(moments[key], float) for key in ("count", "mean", "scatter"))
    raw = (scatters + counts[:, None, None, None] * means[..., :, None] * means[..., None, :]).sum(0)[0] / counts.sum()
    mean = (counts[:, None] * means[:, 0]).sum(0) / counts.sum()
    gain, offset = correction.gain[0], correction.offset[0]
    epsilon = np.array([R, 1.5 * T, -0.5 * T, 0, 0])
    error = np.array([0, 1.5 * (gain - 1), -0.5 * (gain - 1), 1.5 * gain, -0.5 * gain])
    return epsilon @ raw @ epsilon, T**2 * (error @ raw @ error + 2 * offset * error @ mean + offset**2)


def test_a_mean_needs_every_value() -> None:
    assert mean_of([1.0, 2.0, 6.0]) == 3.0
    assert mean_of([1.0, None]) is None
    assert mean_of([]) is None


# Bundles that do not hold what they should, under right hashes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["steps"][1].pop("k"), "steps.1.k"),
        (lambda content: content["steps"].pop(), "belong to another chain"),
        (lambda content: content["layers"].pop(), "different layers"),
        (lambda content: content["steps"][0].update(mu=[]), "steps.0.mu"),
        (lambda content: content["steps"][0].update(moments={}), "moments are damaged"),
        (lambda content: content["steps"][0]["moments"].update(variables=["a", "b", "c", "d", "e"]), "do not fit"),
        (lambda content: content["layers"][0].update(weight_bits=0), "layers.0.weight_bits"),
    ],
)
def test_damaged_statistics_are_an_error(own_reported: Reported, change: Callable[[dict[str, Any]], object], message: str) -> None:
    own_reported.edit(STATISTICS, change)
    with pytest.raises(BundleError, match=message):
        _ = _content(own_reported).steps


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("schedules/default.json", lambda content: content["steps"].pop(), "length of the schedule differs from its sampler's"),
        ("schedules/default.json", lambda content: content["sampler"].update(name="plms", eta=0.0), "found:    4 steps\n.*expected: 5"),
        (
            "schedules/default.json",
            lambda content: content["sampler"].update(steps=10**9),
            "sampler.steps: Input should be less than or equal to 10000",
        ),
        ("manifest.json", lambda content: content["precisions"].pop("fp32"), "lacks a precision"),
        ("manifest.json", lambda content: content["precisions"].update({"<b>": content["precisions"]["fp32"]}), "unknown precision"),
    ],
)
def test_a_schedule_that_does_not_fit_is_an_error(
    own_reported: Reported, name: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    own_reported.edit(name, change)
    with pytest.raises(BundleError, match=message):
        _content(own_reported)


def test_a_chain_of_plms_has_one_step_more_than_it_was_asked_for(own_reported: Reported) -> None:
    own_reported.edit("schedules/default.json", lambda content: content["sampler"].update(name="plms", steps=3, eta=0.0))
    assert len(_content(own_reported).chain.timestep) == 4
