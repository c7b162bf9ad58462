"""The estimate counts exactly the rows that the networks are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from calib.quantizers.rules.precision import Precision
from engines.backends.base import Engine
from ptqd_export.models.base import Adapter
from ptqd_export.stages.estimate.network_rows import NetworkRows, network_rows
from ptqd_export.stages.finish.sample_pictures import make_pictures
from ptqd_export.stages.fit.budget import make_probes, make_times
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.fit.statistics import make_statistics
from ptqd_export.stages.fit.walk_check import check_fitted
from ptqd_export.stages.network.states import make_states
from ptqd_export.stages.precisions.activations import make_observations
from ptqd_export.stages.precisions.conversion import make_converted_graph
from ptqd_export.stages.precisions.nearest_rounding import Sources
from ptqd_export.stages.precisions.quantized_graph import make_quantized_graph
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

Stage = Callable[[Path, Recorder], None]


class Counter:
    """Counts the rows that engines and adapters run on."""

    def __init__(self) -> None:
        self.graph = self.torch = 0

    def engine(self, run: Callable[[Engine, Mapping[str, Any]], Any], engine: Engine, feeds: Mapping[str, Any]) -> Any:
        self.graph += len(feeds["sample"])
        return run(engine, feeds)

    def adapter(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Adapter) and not inputs[0].is_meta:  # loading calls the network on shapes alone
            self.torch += len(inputs[0])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    counter, run = Counter(), Engine.run
    monkeypatch.setattr(Engine, "run", lambda engine, feeds: counter.engine(run, engine, feeds))
    with nn.modules.module.register_module_forward_pre_hook(counter.adapter):
        yield counter


def _stages(built: Built) -> dict[str, Stage]:
    context = built.context
    traced, states, walked = (built.stage(name) for name in ("trace", "states", "statistics"))
    kinds = {one.name: "convert" if one.weight_bits is None else "quantize" for one in context.engine_precisions}
    graphs = {"fp32": traced, **{name: built.stage(f"{kind}-{name}") for name, kind in kinds.items()}}
    sources = Sources(traced, states, built.stage("observe"), reference={})
    return {
        "states": partial(make_states, context, traced),
        "observe": partial(make_observations, context, traced, states, context.groups(range(context.table.steps))),
        "quantize-w8a8": partial(make_quantized_graph, context, Precision.parse("w8a8"), sources, None),
        "statistics": partial(make_statistics, context, graphs, None, fit_settings(context)),
        "probes": partial(make_probes, context, graphs, walked),
        "times": partial(make_times, context, graphs),
        "check": partial(check_fitted, context, graphs, walked),
        "pictures": partial(make_pictures, context, graphs, None, walked),
    }


@pytest.mark.parametrize("stage", ["states", "observe", "quantize-w8a8", "statistics", "probes", "times", "check", "pictures"])
def test_a_stage_runs_the_rows_that_are_counted_and_tells_all_of_its_work(
    class_build: Built, tmp_path: Path, counted: Counter, stage: str
) -> None:
    recorder = Recorder()
    _stages(class_build)[stage](tmp_path, recorder)
    expected = network_rows(class_build.context, stage)
    if stage == "quantize-w8a8":  # the first precision also makes the reference of all
        expected = NetworkRows(expected.graph, expected.torch + 64)
    assert NetworkRows(counted.graph, counted.torch) == expected
    assert counted.graph + counted.torch > 0
    total = recorder.told[-1][2]
    assert recorder.told == [("advance", done, total) for done in range(1, total + 1)]


def test_other_stages_run_no_network(class_build: Built) -> None:
    for stage in ("trace", "text", "bundle", "optimize", "reconstruct-w4a8"):
        assert network_rows(class_build.context, stage) == NetworkRows()


def test_converted_graphs_are_counted(cross_trt_build: Built, tmp_path: Path, counted: Counter) -> None:
    context, recorder, traced = cross_trt_build.context, Recorder(), cross_trt_build.stage("trace")
    make_converted_graph(context, Precision.parse("fp16"), traced, cross_trt_build.stage("states"), tmp_path, recorder)
    assert NetworkRows(counted.graph, counted.torch) == network_rows(context, "convert-fp16")
    assert recorder.told[-1][1] == recorder.told[-1][2]
