"""Which layers make the noise: against networks with one layer's weight rounded by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from calib.quantizers.rules.precision import Precision
from engines.errors import UsageError
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.network.states import load_states
from ptqd_export.stages.network.tracing import TracedNetwork
from ptqd_export.stages.precisions.nearest_rounding import quantizers
from tools.studies.layer_noise import HEADER, built_sources, layer_noise, main

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

ROOT = Path(__file__).parents[3]
PRECISION = Precision.parse("w2a16")
"""Weights alone, so that rounding a weight by hand is all there is to do."""
STATES = 6


@pytest.fixture(scope="module")
def context(digits: Digits) -> BuildContext:
    written = load_plan(ROOT / "tools" / "digits" / "plan.json")
    return BuildContext(PlanFile(written.plan, written.folder, digits.folder))


def test_shares_are_those_of_weights_rounded_by_hand(digits: Digits, context: BuildContext) -> None:
    sources, model = built_sources(digits.folder), context.model
    found = layer_noise(context, sources, PRECISION, STATES)
    states = load_states(sources.states).first(STATES)
    classes = torch.cat([torch.from_numpy(states.rows), torch.full((STATES,), 10)])
    sample, timestep = (torch.from_numpy(value).repeat(2, *[1] * (value.ndim - 1)) for value in (states.samples, states.timesteps))
    errors = {}
    with torch.no_grad():
        exact = model.adapter(sample, timestep, classes)
        for layer in quantizers(context, sources, TracedNetwork.load(sources.prepared), model).rounded_to_nearest(PRECISION):
            network = copy.deepcopy(model.adapter.network)
            scale = layer.weight.scale.reshape(-1, *[1] * (layer.integers.ndim - 1))
            network.get_submodule(layer.layer.name).get_parameter("weight").copy_(layer.integers * scale)
            out = model.with_network(network).adapter(sample, timestep, classes)
            errors[layer.layer.name] = (out - exact).square().sum(dim=(1, 2, 3)).numpy()
    total = np.sum([*errors.values()], axis=0)
    assert {one.name: one.noise for one in found} == pytest.approx(
        {name: np.mean(error / total) for name, error in errors.items()}, rel=1e-3
    )
    assert [one.noise for one in found] == sorted((one.noise for one in found), reverse=True)
    assert sum(one.macs for one in found) == pytest.approx(1)


def test_a_plan_that_was_not_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has not been built"):
        built_sources(tmp_path)


def test_the_table_has_the_noisiest_layers(digits: Digits, context: BuildContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.studies.layer_noise.load_plan", lambda _: context.plan_file)
    lines = CliRunner().invoke(main, ["plan.json", "--precision", PRECISION.name, "--states", "2", "--top", "3"]).output.splitlines()
    assert lines[0] == f"| {' | '.join(HEADER)} |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        one.name for one in layer_noise(context, built_sources(digits.folder), PRECISION, 2)[:3]
    ]
