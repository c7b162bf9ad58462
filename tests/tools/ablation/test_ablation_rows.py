"""The ablation's rows: what is refitted comes after what it is refitted from, and nothing is done twice."""

from __future__ import annotations

import pytest

from tools.ablation.ablation_rows import CONTENDERS, OURS, Row, full_precision_row, mixed_rows, uniform_rows

ETAS = tuple(CONTENDERS)


@pytest.mark.parametrize("eta", ETAS)
def test_a_refit_comes_after_the_walk_that_it_reads(eta: float) -> None:
    seen: set[str] = set()
    for row in uniform_rows("w4a8", eta):
        assert row.request.fit == ("walk" if not seen or "shift" in row.label else "moments")
        assert row.request.fit == "walk" or row.request.base in seen
        seen.add(row.name)


def test_every_row_has_a_name_of_its_own() -> None:
    rows = [row for eta in ETAS for precision in ("w8a8", "w4a8") for row in uniform_rows(precision, eta)]
    rows += [full_precision_row(eta) for eta in ETAS] + list(mixed_rows({"snr": ("w4a8", "w8a8"), "budget": ("w8a8", "w4a8")}, 1.0))
    assert len({row.name for row in rows}) == len(rows) == 2 * (10 + 8) + 2 + 2


def test_a_name_says_precision_eta_and_parts() -> None:
    (row,) = (row for row in uniform_rows("w4a8", 1.0) if row.label == "+ variance")
    assert row.name == "w4a8-eta1-plus-variance"


def test_every_correction_is_another_one() -> None:
    def settings(row: Row) -> tuple[object, ...]:
        return row.request.mode, row.request.parts, row.request.variance

    for eta in ETAS:
        rows = list(uniform_rows("w4a8", eta))
        assert len({settings(row) for row in rows}) == len(rows)


def test_chains_without_fresh_noise_calibrate_no_variance() -> None:
    assert {row.request.variance for row in uniform_rows("w4a8", 0.0)} == {"none", "shift"}
    assert {row.request.variance for row in uniform_rows("w4a8", 1.0)} == {"none", "schedule"}


@pytest.mark.parametrize("eta", ETAS)
def test_the_default_correction_is_among_the_contenders(eta: float) -> None:
    assert OURS[eta] in [contender.label for contender in CONTENDERS[eta]]


def test_a_mixture_lists_every_step() -> None:
    (row,) = mixed_rows({"snr": ("w4a8", "w8a8")}, 1.0)
    assert (row.precision, row.request.policy, row.request.precisions) == (None, "fixed", ("w4a8", "w8a8"))
