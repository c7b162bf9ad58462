"""Seconds of stages from counted rows and the rates of a machine."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ptqd_export.stages.estimate.network_rows import network_rows
from ptqd_export.stages.estimate.rates import Rates
from ptqd_export.stages.estimate.stage_costs import EXACT, STAGE, StageCosts

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

RATES = Rates(graph_row=0.01, verified_row=0.03, torch_row=0.02, checked_row=0.04, open=0.5, rewrite=0.25, activation=0.125, weight=1e-3)


@pytest.fixture
def costs(class_build: Built) -> StageCosts:
    return StageCosts(class_build.context, class_build.stage("trace"), 8.0, RATES)


def test_a_walk_costs_its_rows_and_the_opening_of_its_networks(costs: StageCosts) -> None:
    rows = 2 * 4 * 16 * 5  # branches, steps, samples, networks
    assert costs.seconds("statistics") == pytest.approx(STAGE + rows * 0.01 + 5 * 0.5)


def test_only_the_first_of_the_precisions_with_equal_activations_searches_their_scales(class_build: Built, costs: StageCosts) -> None:
    names = [precision.name for precision in class_build.context.quantized_precisions]
    assert names == ["w4a4", "w3a8", "w4a8", "w8a8"]
    sources = len({layer.source for layer in class_build.network.layers})
    seconds = {name: costs.seconds(f"quantize-{name}") for name in names}
    assert seconds["w4a8"] == seconds["w8a8"]
    assert seconds["w4a4"] == seconds["w3a8"] == pytest.approx(seconds["w4a8"] + sources * 0.125)


def test_graphs_are_verified_and_timed_where_they_run_whatever_measures(class_build: Built, costs: StageCosts) -> None:
    rows = network_rows(class_build.context, "quantize-w8a8").graph
    dearer = StageCosts(class_build.context, class_build.stage("trace"), 8.0, replace(RATES, verified_row=0.04))
    assert dearer.seconds("quantize-w8a8") - costs.seconds("quantize-w8a8") == pytest.approx(EXACT * rows * 0.01)
    timed = network_rows(class_build.context, "times").graph
    assert dearer.seconds("times") - costs.seconds("times") == pytest.approx(timed * 0.01)
    assert dearer.seconds("statistics") == costs.seconds("statistics")


def test_a_stage_that_only_writes_files_costs_little(costs: StageCosts) -> None:
    assert costs.seconds("text") == costs.seconds("decoder") == STAGE  # this model has neither
