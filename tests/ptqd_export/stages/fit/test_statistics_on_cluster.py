"""Statistics that were measured on a cluster are those of one machine."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.cluster.session import Cluster
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.cluster_walk import walking_on
from ptqd_export.stages.fit.fit_inputs import fit_settings
from ptqd_export.stages.fit.statistics import make_statistics
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.recorder import Recorder
from tests.ptqd_export.stages.whole_builds import changed, portable

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_moments_and_schedule_are_byte_for_byte_those_of_one_machine(class_build: Built, tmp_path: Path) -> None:
    graphs = {name: class_build.stage(stage) for name, stage in (("fp32", "trace"), *_quantized(class_build))}
    made: list[dict[str, Any]] = []
    for place, cluster in (("here", None), ("there", Cluster(cpus=1))):
        context = BuildContext(replace(class_build.plan_file), None if cluster is None else partial(walking_on, cluster))
        (tmp_path / place).mkdir()
        make_statistics(context, graphs, None, fit_settings(context), tmp_path / place, Recorder())
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / place).iterdir())})
    here, there = made
    assert len(here) == 1 + len(graphs) - 1
    assert len(json.loads(here["schedule.json"])["steps"]) > 1
    assert there == here


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_features_are_kept_and_reused_on_a_cluster_too(class_build: Built, tmp_path: Path) -> None:
    made = list[dict[str, bytes]]()
    reuse = {"precisions": ["w8a8"], "reuse": {"cuts": ["skip_1"]}, "steps": {"reuse": {"every": 2}}}
    for place, cluster in (("here", None), ("there", Cluster(cpus=1))):
        run_build(changed(class_build, tmp_path / place, **reuse), cluster=cluster)
        made.append(portable(tmp_path / place))
    here, there = made
    assert "statistics/onnxruntime/w8a8+skip_1.json" in here
    assert there == here


def _quantized(built: Built) -> list[tuple[str, str]]:
    return [(precision.name, f"quantize-{precision.name}") for precision in built.context.quantized_precisions]
