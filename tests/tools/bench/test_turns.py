"""Contestants in processes of their own, on a bundle whose networks are known in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.networks.engine_bank import EngineBank
from tools.bench.case import Case
from tools.bench.result import Result
from tools.bench.static_graph import make_static_graphs
from tools.bench.turns import measure, snr_db
from tools.bench.worker import LeftOutError, Worker

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

BATCH = 3
ROUNDS = 2


@pytest.fixture(scope="module")
def case(tiny: TinyBundle) -> Case:
    made = Case(tiny.folder.parent, BATCH)
    make_static_graphs(made)
    return made


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(case: Case, told: list[str]) -> Result:
    return measure("digits", case, ("eager", "static", "w8a8", "w4a8"), ROUNDS, told.append)


def test_everyone_who_can_run_has_a_row_in_the_order_of_the_tables(result: Result) -> None:
    assert list(result.rows) == ["fp32", "static", "w8a8", "w4a8"]
    for row in result.rows.values():
        assert min(row.network_seconds, row.chain_seconds, row.load_seconds) > 0
        assert row.before_mib < row.peak_mib


def test_who_cannot_run_is_left_out_with_the_reason(result: Result, case: Case) -> None:
    assert list(result.left_out) == ["eager"]
    assert str(case.plan) in result.left_out["eager"]


def test_the_case_is_described(result: Result) -> None:
    assert (result.batch, result.steps, result.schedule_steps, result.guidance, result.rounds) == (BATCH, 4, 4, 1.5, ROUNDS)
    assert result.machine.cores > 0
    assert result.machine.versions["onnxruntime"][0].isdigit()


def test_what_happens_is_told(result: Result, told: list[str]) -> None:
    assert result.rows
    assert told[0] == "loading diffusers, PyTorch eager"
    assert told[-1] == "outputs"


def test_signal_to_noise_is_that_of_the_networks_themselves(tiny: TinyBundle, case: Case, result: Result) -> None:
    """Against the networks' own arithmetic, in numpy, at the states of full precision."""
    visited = case.visited(EngineBank(case.bundle, 1.5, batch=BATCH))
    assert visited.states.shape == (4, BATCH, 1, 8, 8)
    classes = np.concatenate([visited.rows, np.full(BATCH, 3)])
    calls = [(np.concatenate([x, x]), t) for x, t in zip(visited.states, visited.timesteps, strict=True)]
    outs = {name: np.stack([network(x, t, classes) for x, t in calls]) for name, network in tiny.networks.items()}
    for name in ("w8a8", "w4a8"):
        power = [np.sum(outs["fp32"][i] ** 2) / np.sum((outs[name][i] - outs["fp32"][i]) ** 2) for i in range(4)]
        assert result.rows[name].snr_db == pytest.approx(np.mean(10 * np.log10(power)), abs=0.05)
    assert result.rows["fp32"].snr_db is None


def test_signal_to_noise_in_closed_form() -> None:
    e = np.array([[3.0, 4.0], [0.0, 2.0]], dtype=np.float32)
    q = e + np.array([[0.3, 0.4], [0.0, 0.02]], dtype=np.float32)
    assert snr_db(e, q) == pytest.approx((20 + 40) / 2, abs=1e-4)


def test_ones_own_noise_is_calibrated_on_other_samples(case: Case) -> None:
    bank = EngineBank(case.bundle, 1.5, batch=BATCH)
    first, other = case.visited(bank), case.visited(bank, seed=1)
    assert not np.array_equal(first.states[0], other.states[0])
    np.testing.assert_array_equal(first.states, case.visited(bank).states)


def test_a_process_that_cannot_load_says_why_and_ends(tmp_path: Path) -> None:
    with pytest.raises(LeftOutError, match="not a bundle"):
        Worker("w8a8", Case(tmp_path, 1))


def test_an_excerpt_of_the_chain_is_held_against_states_of_the_whole(case: Case) -> None:
    bank = EngineBank(case.bundle, 1.5, batch=BATCH)
    whole, part = case.visited(bank), Case(case.folder, BATCH, steps=2).visited(bank)
    assert part.timesteps == (whole.timesteps[0], whole.timesteps[-1])
    np.testing.assert_array_equal(part.states, whole.states[[0, -1]])
