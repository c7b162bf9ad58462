"""What other tools run is the same model, at the same states."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.backends.openvino import openvino_network
from engines.errors import MissingBackendError
from tools.bench.case import Case
from tools.bench.contestants import CONTESTANTS, EngineRunner, eager, ours
from tools.bench.diffusers_runner import DiffusersRunner
from tools.bench.turns import snr_db

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.mark.slow
def test_diffusers_and_our_engine_run_the_same_network(digits_case: Case) -> None:
    full = ours(digits_case, "fp32")
    visited = full.visited()
    assert snr_db(full.outputs(visited), eager(digits_case).outputs(visited)) > 90


def test_diffusers_takes_the_steps_of_the_schedule(digits_case: Case) -> None:
    runner = eager(digits_case)
    assert isinstance(runner, DiffusersRunner)
    assert runner._timesteps() == [step.timestep for step in digits_case.schedule.steps]
    excerpt = DiffusersRunner(Case(digits_case.folder, 2, steps=5), runner.model, runner.call, runner.scheduler)
    assert excerpt._timesteps() == [step.timestep for step in excerpt.case.schedule.steps]
    samples = excerpt.chain()
    assert isinstance(samples, np.ndarray)
    assert samples.shape == (2, 1, 16, 16)
    assert np.abs(samples).max() < 10


def test_a_compiler_that_is_missing_is_told(digits_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingBackendError, match="C\\+\\+ compiler"):
        CONTESTANTS["compile"].load(digits_case)


def test_openvino_that_is_missing_is_told(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_network._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingBackendError, match="OpenVINO is not installed"):
        CONTESTANTS["openvino-fp32"].load(Case(tiny.folder.parent, 2))


def test_openvino_computes_the_network(own_tiny: TinyBundle) -> None:
    pytest.importorskip("openvino")
    case = Case(own_tiny.folder.parent, 2)
    full, runner = ours(case, "fp32"), CONTESTANTS["openvino-fp32"].load(case)
    assert isinstance(runner, EngineRunner)
    assert runner.denoiser.engine.label == "fp32 on OpenVINO"
    visited = full.visited()
    assert snr_db(full.outputs(visited), runner.outputs(visited)) > 90
