"""Groups of steps: every timestep runs on its own group's engine, whatever is wrapped around it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engines.arrays import Float32
from engines.backends.base import Engine, TensorSpec
from engines.bundle.bundle import Bundle
from engines.errors import BundleError, PtqdError
from engines.networks.engine_bank import EngineBank
from engines.networks.grouped_engine import GroupedEngine, engine_at, grouped

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

X = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)
ROWS = np.array([2, 0], dtype=np.int64)
STATE = TensorSpec("sample", np.dtype(np.float32), (2,))
TIMESTEP = TensorSpec("timestep", np.dtype(np.float32), ())


class Adding(Engine):
    """Adds a number to the state, and checks that it is given its own inputs only."""

    def __init__(self, number: float, *inputs: TensorSpec) -> None:
        super().__init__("adding", inputs, STATE)
        self.number = np.float32(number)

    def _run(self, feeds: Mapping[str, Any]) -> list[Float32]:
        assert feeds.keys() == {spec.name for spec in self.inputs}
        return [np.asarray(feeds["sample"] + self.number)]


def feeds(*timesteps: float) -> dict[str, Any]:
    return {"sample": np.zeros((len(timesteps), 2), np.float32), "timestep": np.array(timesteps, np.float32)}


@pytest.mark.parametrize(("inputs"), [(STATE,), (STATE, TIMESTEP)], ids=["body", "whole"])
@pytest.mark.parametrize(("timestep", "number"), [(999, 1), (600, 1), (599.5, 2), (250, 2), (249, 3), (0, 3)])
def test_a_timestep_runs_on_the_engine_of_its_group(inputs: tuple[TensorSpec, ...], timestep: float, number: float) -> None:
    engine = GroupedEngine([(math.inf, Adding(1, *inputs)), (600.0, Adding(2, *inputs)), (250.0, Adding(3, *inputs))])
    np.testing.assert_array_equal(engine.run(feeds(timestep, timestep)), np.full((2, 2), number))
    assert {spec.name for spec in engine.inputs} == {"sample", "timestep"}


def test_a_batch_of_two_groups_is_an_error() -> None:
    engine = GroupedEngine([(math.inf, Adding(1, STATE)), (600.0, Adding(2, STATE))])
    np.testing.assert_array_equal(engine.run(feeds(700.0, 600.0)), np.ones((2, 2)))
    with pytest.raises(PtqdError, match=r"mixes groups of steps\.(?s:.*)timesteps from 599 to 600"):
        engine.run(feeds(600.0, 599.0))


def test_a_single_group_is_the_engine_itself() -> None:
    alone = Adding(1, STATE)
    assert grouped([(math.inf, alone)]) is alone
    assert engine_at(alone, 300.0) is alone


@pytest.fixture
def two_groups(own_tiny: TinyBundle) -> TinyBundle:
    """A bundle whose precision w8a8 runs full precision's graph below timestep 500."""
    name = "graphs/onnxruntime/w8a8.group_1.onnx"
    shutil.copyfile(own_tiny.folder / "graphs/onnxruntime/fp32.onnx", own_tiny.folder / name)
    own_tiny.rehash(name)
    record = {"below": 500.0, "graph": name, "pieces": None}
    own_tiny.edit_json("manifest.json", lambda manifest: manifest["precisions"]["w8a8"].update(groups=[record]))
    return own_tiny


@pytest.mark.parametrize(("timestep", "network"), [(750.0, "w8a8"), (500.0, "w8a8"), (499.0, "fp32"), (0.0, "fp32")])
def test_the_bank_runs_the_graph_of_the_group(two_groups: TinyBundle, timestep: float, network: str) -> None:
    out = EngineBank(Bundle.open(two_groups.folder), 1.0)["w8a8"](X, timestep, ROWS)
    np.testing.assert_allclose(out, [two_groups.networks[network](X, timestep, ROWS)], rtol=0, atol=1e-5)


def test_a_damaged_graph_of_any_group_is_refused(two_groups: TinyBundle) -> None:
    two_groups.edit("graphs/onnxruntime/w8a8.group_1.onnx", lambda content: content[:-1] + b"!")
    with pytest.raises(BundleError, match=r"was changed or damaged\.(?s:.*)w8a8\.group_1\.onnx"):
        EngineBank(Bundle.open(two_groups.folder), 1.0)["w8a8"]


def test_graphs_of_groups_are_found_by_timestep(two_groups: TinyBundle) -> None:
    bundle = Bundle.open(two_groups.folder)
    folder = Path(two_groups.folder, "graphs/onnxruntime")
    assert bundle.verified_graphs("w8a8") == [(math.inf, folder / "w8a8.onnx"), (500.0, folder / "w8a8.group_1.onnx")]
    assert bundle.verified_graph("w8a8") == bundle.verified_graph("w8a8", 500.0) == folder / "w8a8.onnx"
    assert bundle.verified_graph("w8a8", 499.9) == folder / "w8a8.group_1.onnx"
