"""Builds with groups of steps: weights that are stored once, scales that are each group's own, and chains that use both."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import engines
from calib.quantizers.group_choice import WORTH_DB
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeEngine
from engines.bundle.bundle import Bundle
from engines.networks.engine_bank import EngineBank
from ptqd_export.stages.finish.keep_optimized import engine_graphs
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.stages.whole_builds import changed, sample

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

QUICK = {"weight_scale": "max", "activation_scale": "max"}
"""Scales that need no search."""

GROUPS = {"step_groups": 2, **QUICK}


@pytest.fixture(scope="module")
def grouped_build(class_build: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle whose precisions have two groups of steps each."""
    folder = tmp_path_factory.mktemp("grouped") / "bundle"
    run_build(changed(class_build, folder, quantization=GROUPS, precisions=["w8a8", "w4a8"]))
    return folder


def initializers(graph: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(graph, load_external_data=False).graph.initializer}


def test_groups_share_their_weights_on_disk_and_differ_in_activation_scales_only(grouped_build: Path) -> None:
    bundle = Bundle.open(grouped_build)
    for precision in ("w4a8", "w8a8"):
        (_, first), (below, second) = bundle.verified_graphs(precision)
        assert below == _halfway(bundle)
        one, other = initializers(first), initializers(second)
        weights = [name for name in one if name.endswith((".weight.int", ".weight.scale", ".weight.zero_point"))]
        assert len(weights) > 30
        for name in weights:
            assert other[name].external_data == one[name].external_data
            assert other[name].raw_data == one[name].raw_data
        stored_twice = {name for name, tensor in other.items() if len(tensor.raw_data) > 256}
        assert {name.rpartition(".bias.")[1] for name in stored_twice} <= {".bias."}
        assert one.keys() ^ other.keys()  # activation scales are named by their values


def test_a_precision_without_quantizers_has_a_single_group(grouped_build: Path) -> None:
    assert Bundle.open(grouped_build).manifest.precisions["fp32"].groups == ()


def test_pieces_beside_the_state_are_one_for_all_groups(grouped_build: Path) -> None:
    record = Bundle.open(grouped_build).manifest.precisions["w4a8"]
    first, second = (network.pieces for network in record.networks)
    assert first is not None
    assert second is not None
    assert second.embeddings == first.embeddings
    assert second.body != first.body
    assert [*engine_graphs(Bundle.open(grouped_build))][-3:] == [
        "w8a8",
        f"w8a8 below timestep {record.groups[0].below:g}",
        "w8a8 embedding_0",
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_each_side_of_the_bound_runs_its_own_graph(grouped_build: Path, whole: bool) -> None:
    bundle = Bundle.open(grouped_build)
    x, rows = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32), np.zeros(1, np.int64)
    denoiser = EngineBank(bundle, 1.0, whole=whole)["w4a8"]
    (_, first), (below, second) = bundle.verified_graphs("w4a8")
    feeds: dict[str, Any] = {"sample": x, "class_labels": rows}
    for timestep, graph in ((below, first), (float(np.nextafter(np.float32(below), np.float32(0))), second)):
        alone = OnnxRuntimeEngine(graph).run({**feeds, "timestep": np.full(1, timestep, np.float32)})
        np.testing.assert_allclose(denoiser(x, timestep, rows)[0], alone, rtol=0, atol=1e-6)
    a, b = (OnnxRuntimeEngine(graph).run({**feeds, "timestep": np.full(1, below, np.float32)}) for graph in (first, second))
    assert np.abs(a - b).max() > 1e-4


def test_scales_of_all_groups_are_in_the_statistics(grouped_build: Path) -> None:
    layers: list[dict[str, Any]] = json.loads((grouped_build / "statistics/onnxruntime/w4a8.json").read_text())["layers"]
    inner = [layer for layer in layers if layer["role"] == "inner"]
    assert all([group["below"] for group in layer["groups"]] == [_halfway(Bundle.open(grouped_build))] for layer in inner)
    assert any(layer["groups"][0]["input"] != layer["input"] for layer in inner)
    assert not any("groups" in layer for layer in layers if layer["input"] is None)


def test_chains_of_other_schedules_cross_the_bound(grouped_build: Path) -> None:
    assert np.isfinite(sample(grouped_build)).all()
    with engines.open_bundle(grouped_build) as bundle:
        assert bundle.precisions["w4a8"].groups == (_halfway(Bundle.open(grouped_build)),)
        assert np.isfinite(bundle.sample(2, precision="w4a8", latents=True)).all()


@pytest.mark.slow
def test_groups_of_prompts_share_what_does_not_depend_on_the_state(cross_build: Built, tmp_path: Path) -> None:
    """Keys and values of the conditions have float inputs, so the piece that computes them is one for all groups.
    A precision with float activations has a single group.
    """
    run_build(changed(cross_build, tmp_path / "bundle", quantization=GROUPS, precisions=["w8a8", "w4a16"]))
    assert Bundle.open(tmp_path / "bundle").manifest.precisions["w4a16"].groups == ()
    first, second = Bundle.open(tmp_path / "bundle").manifest.precisions["w8a8"].networks
    assert first.pieces is not None
    assert second.pieces is not None
    assert sorted(first.pieces.embeddings) == ["embedding_0", "embedding_1"]
    assert second.pieces.embeddings == first.pieces.embeddings


def test_groups_for_tensorrt_share_their_weights_in_half_precision(cross_trt_build: Built, tmp_path: Path) -> None:
    run_build(changed(cross_trt_build, tmp_path / "bundle", quantization=GROUPS, precisions=["w8a8"]))
    bundle = Bundle.open(tmp_path / "bundle")
    assert [network.pieces for network in bundle.manifest.precisions["w8a8"].networks] == [None, None]
    (_, first), (below, second) = bundle.verified_graphs("w8a8")
    assert below == _halfway(bundle)
    one, other = initializers(first), initializers(second)
    weights = [name for name in one if name.endswith(".weight.int")]
    assert len(weights) > 10
    assert any(one[name].external_data for name in weights)
    assert all((one[name].external_data, one[name].raw_data) == (other[name].external_data, other[name].raw_data) for name in weights)


def _halfway(bundle: Bundle) -> float:
    """Halfway between the timesteps of the middle steps."""
    timesteps = [step.timestep for step in bundle.schedule().steps]
    middle = len(timesteps) // 2
    return (timesteps[middle - 1] + timesteps[middle]) / 2


def test_chosen_groups_are_the_best_by_the_noise_that_was_measured(class_build: Built, tmp_path: Path) -> None:
    """Found again by brute force: no division into neighbouring parts has a higher SNR for its engines."""
    run_build(changed(class_build, tmp_path / "bundle", quantization={"step_groups": "auto", **QUICK}, precisions=["w4a4"]))
    (stage,) = (tmp_path / "bundle/local/stages").glob("groups-w4a4-*")
    record = json.loads((stage / "chosen_groups.json").read_text())
    measured = {tuple(one["span"]): sum(one["parts"]) for one in record["snr_db"]}
    parts = 1 + max(max(span) for span in measured)
    cuts = [cut for count in range(parts) for cut in itertools.combinations(range(1, parts), count)]
    divisions = [[tuple(range(*ends)) for ends in itertools.pairwise((0, *cut, parts))] for cut in cuts]
    best = max(divisions, key=lambda spans: sum(measured[span] for span in spans) - WORTH_DB * parts * len(spans))
    assert [tuple(span) for span in record["groups"]] == best
    timesteps = [step.timestep for step in Bundle.open(tmp_path / "bundle").schedule().steps]
    assert parts == len(timesteps)
    bounds = [(timesteps[span[0] - 1] + timesteps[span[0]]) / 2 for span in best[1:]]
    assert [group.below for group in Bundle.open(tmp_path / "bundle").manifest.precisions["w4a4"].groups] == bounds
