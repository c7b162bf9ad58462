"""The frontier file: what it says of chains, and how it counts agreement."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from calib.walk.budget import Menu
from calib.walk.fewer_steps import FewerSteps
from calib.walk.sensitivity import Probes
from engines.arrays import Float64
from ptqd_export.records.frontier_file import Choice, Frontier, Kind, MeasuredError, RealChains

STEPS = 3
CHAINS: list[tuple[Kind, Choice]] = [
    ("uniform", ("w4a8",) * STEPS),
    ("uniform", ("w8a8",) * STEPS),
    ("uniform", ("fp32",) * STEPS),
    ("snr", ("w4a8", "w8a8", "w8a8")),
    ("mixture", ("w4a8", "fp32", "w8a8")),
    ("frontier", ("w4a8",) * STEPS),
]
MEASURED: dict[Choice, float] = {
    ("w4a8",) * 3: 0.3,
    ("w8a8",) * 3: 0.001,
    ("fp32",) * 3: 0.0,
    ("w4a8", "w8a8", "w8a8"): 0.05,
    ("w4a8", "fp32", "w8a8"): 0.004,
}


@pytest.fixture
def frontier() -> Frontier:
    errors = np.random.default_rng(0).standard_normal((4, STEPS, 2, 16)) * np.array([0.3, 0.05])[:, None]
    probes = Probes.of_every_step(("w4a8", "w8a8"), np.einsum("nipv,njqv->nipjq", errors, errors) / 16)
    menu = Menu.of(probes, {"w4a8": 0.04, "w8a8": 0.07, "fp32": 1.0})
    measured = {choice: MeasuredError(error, 0.1, 2 * error) for choice, error in MEASURED.items()}
    return Frontier("bit_operations", menu, probes, CHAINS, measured, samples=32)


def test_a_chain_is_listed_with_its_cost_and_its_errors(frontier: Frontier) -> None:
    record = json.loads(frontier.to_json())
    assert [(chain["kind"], tuple(chain["precisions"])) for chain in record["chains"]] == CHAINS
    snr = record["chains"][3]
    assert snr["cost"] == pytest.approx((0.04 + 0.07 + 0.07) / 3)
    assert snr["bound"] == pytest.approx(frontier.menu.bound_of(CHAINS[3][1]))
    assert snr["predicted_error"] == pytest.approx(frontier.probes.predict(CHAINS[3][1]))
    assert snr["measured"] == {"error": 0.05, "log_standard_error": 0.1, "mean_square": 0.1}
    assert record["cost_a_step"] == {"w4a8": 0.04, "w8a8": 0.07, "fp32": 1.0}
    assert record["amplitudes"]["fp32"] == [0.0] * STEPS
    np.testing.assert_allclose(record["amplitudes"]["w8a8"], frontier.menu.amplitudes[:, 1])


def test_prediction_and_measurement_are_correlated_in_decibels(frontier: Frontier) -> None:
    found = frontier.record()["prediction"]
    inexact = [choice for choice, error in MEASURED.items() if error]
    predicted, measured = (np.log10([of(choice) for choice in inexact]) for of in (frontier.probes.predict, MEASURED.__getitem__))
    ranks = [np.argsort(np.argsort(values)).astype(np.float64) for values in (predicted, measured)]
    assert found == {
        "samples": 32,
        "chains": 4,
        "pearson": pytest.approx(_correlation(predicted, measured)),
        "spearman": pytest.approx(_correlation(*ranks)),
        "reusing_chains": 0,
        "reusing_excess_db": None,
    }


def test_prediction_for_reuse_is_compared_by_itself(frontier: Frontier) -> None:
    reusing = frontier.menu.reusing(["w8a8+cut"], np.full((STEPS, 2, 1), 0.1), [0.02])
    choice = ("w8a8", "w8a8+cut", "w8a8+cut")
    predicted = (frontier.probes.predict(("w8a8", "fp32", "fp32")) ** 0.5 + 0.2) ** 2
    found = replace(frontier, menu=reusing, measured={**frontier.measured, choice: MeasuredError(predicted / 10, 0.1, 1.0)})
    prediction = found.record()["prediction"]
    assert prediction == {**frontier.record()["prediction"], "reusing_chains": 1, "reusing_excess_db": pytest.approx(10)}


def _correlation(one: Float64, other: Float64) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def test_two_chains_have_no_correlation(frontier: Frontier) -> None:
    few = replace(frontier, measured=dict(list(frontier.measured.items())[:2]))
    prediction = few.record()["prediction"]
    assert prediction["chains"] == 2
    assert prediction["pearson"] is prediction["spearman"] is None


def test_what_was_measured_is_read_back(frontier: Frontier) -> None:
    fewer = {FewerSteps("ddim", 2, "w8a8"): MeasuredError(0.2, 0.1, 0.3)}
    record = json.loads(replace(frontier, fewer=fewer).to_json())
    assert RealChains.of(record) == RealChains(frontier.measured, 32, fewer)
    assert record["fewer_steps"][0]["cost"] == pytest.approx(0.07 * 2 / STEPS)


def test_full_precision_has_a_cost_where_the_plan_does_not_list_it(frontier: Frontier) -> None:
    fewer = {FewerSteps("ddim", 2, "fp32"): MeasuredError(0.2, 0.1, 0.3)}
    listed = Frontier("bit_operations", frontier.menu.only(["w4a8", "w8a8"]), frontier.probes, CHAINS[:1], fewer=fewer)
    assert listed.record()["fewer_steps"][0]["cost"] == pytest.approx(2 / STEPS)


def test_a_measured_error_is_the_geometric_mean_with_its_spread() -> None:
    errors = np.array([1e-4, 1e-2, 1e-3])
    found = MeasuredError.of(errors)
    assert found.error == pytest.approx(1e-3)
    assert found.mean_square == pytest.approx(errors.mean())
    assert found.log_standard_error == pytest.approx(np.log(10) / 3**0.5)
    assert MeasuredError.of(np.zeros(3)) == MeasuredError(0.0, 0.0, 0.0)
