"""The stage `reconstruct`: what it writes, that it can be read again, and that what it learned is what the graph will mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from calib.quantizers.oracle import fake_quantized
from calib.quantizers.quantize import QuantizationSettings
from calib.quantizers.quantized_layer import QuantizedLayer
from calib.quantizers.rules.precision import Precision
from calib.walk.activation_states import States
from ptqd_export.plan import Plan, PlanFile
from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.precisions.learned_rounding import SUMMARY, load_reconstruction, make_reconstruction, reconstruction_settings
from tests.ptqd_export.stages.recorder import Recorder

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def _context(built: Built, **settings: Any) -> BuildContext:
    """The context of a build, with other settings of learned rounding."""
    content = built.plan_file.plan.model_dump(mode="json")
    content["quantization"]["rounding"] = "block"
    content["quantization"]["reconstruction"] |= {"samples": 32, "iterations": 20, "batch_size": 8} | settings
    return BuildContext(PlanFile(Plan.model_validate(content), built.plan_file.folder, built.plan_file.output_path))


def _learn(built: Built, nearest: list[QuantizedLayer], folder: Path, recorder: Recorder, **settings: Any) -> list[QuantizedLayer]:
    context = _context(built, **settings)
    folder.mkdir(exist_ok=True)
    learning = reconstruction_settings(context, Precision.parse("w3a8"))
    make_reconstruction(context, context.model, learning, nearest, built.stage("states"), folder, recorder)
    return load_reconstruction(folder, nearest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reconstruction")


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def nearest(class_build: Built) -> list[QuantizedLayer]:
    """Layers with scales of the largest magnitude, which leave more to learn in 20 iterations than searched scales."""
    return class_build.quantize_with(QuantizationSettings("max", "max"), "w3a8")


@pytest.fixture(scope="module")
def learned(class_build: Built, nearest: list[QuantizedLayer], folder: Path, recorder: Recorder) -> list[QuantizedLayer]:
    return _learn(class_build, nearest, folder, recorder)


def test_network_comes_nearer_to_full_precision(class_build: Built, nearest: list[QuantizedLayer], learned: list[QuantizedLayer]) -> None:
    model = class_build.context.model
    states = States.load(class_build.stage("states") / "states.npz")
    assert model.conditioning is not None
    feeds = model.conditioning.feeds(states.rows, guided=False).values()
    inputs = [torch.from_numpy(value) for value in (states.samples, states.timesteps, *feeds)]
    with torch.no_grad():
        outputs = [model.with_network(fake_quantized(model.adapter.network, layers)).adapter(*inputs) for layers in ([], nearest, learned)]
    before, after = ((out - outputs[0]).square().mean() for out in outputs[1:])
    assert after < 0.9 * before


def _pieces(built: Built) -> int:
    """Pieces of work for a block: 20 optimizer steps, and batches of 8 of the 32 states, per branch."""
    return 20 + 4 * (2 if built.context.guided else 1)


def test_summary_says_what_it_cost_and_gained(class_build: Built, learned: list[QuantizedLayer], folder: Path, recorder: Recorder) -> None:
    summary = json.loads((folder / SUMMARY).read_text())
    blocks = summary["blocks"]
    total = _pieces(class_build) * len(blocks)
    assert recorder.told == [("advance", done, total) for done in range(1, total + 1)]
    assert summary["states"] == 32
    assert summary["minutes"] == pytest.approx(sum(block["seconds"] for block in blocks) / 60)
    assert 0.1 < summary["peak_memory_gib"] < 100
    assert summary["learns"] == ["rounding"]
    assert all((block["kept"] == ["rounding"]) == (block["learned_error"] < block["nearest_error"]) for block in blocks)
    kept = {name for block in blocks if block["kept"] for name in block["layers"]}
    named = {layer.layer.name for layer in learned}
    assert kept
    assert set(summary["nearest"]) == named - kept


def test_embedding_and_boundary_layers_are_left_alone(nearest: list[QuantizedLayer], learned: list[QuantizedLayer]) -> None:
    roles = {layer.layer.role for layer in learned}
    assert roles == {"inner", "boundary", "embedding"}
    for before, after in zip(nearest, learned, strict=True):
        assert after.layer == before.layer
        assert after.layer.role == "inner" or after is before


def test_interrupted_stage_goes_on_to_the_same_bits(
    class_build: Built, nearest: list[QuantizedLayer], learned: list[QuantizedLayer], tmp_path: Path
) -> None:
    class Interrupting(Recorder):
        def advance(self, done: float, total: float) -> None:
            if done > 3 * _pieces(class_build):
                raise KeyboardInterrupt(f"after {done} of {total}")

    with pytest.raises(KeyboardInterrupt):
        _learn(class_build, nearest, tmp_path, Interrupting())
    assert len(list(tmp_path.glob("block-*.npz"))) == 3
    again = _learn(class_build, nearest, tmp_path, Recorder(), memory_gib=1e-9)
    for one, other in zip(again, learned, strict=True):
        assert torch.equal(one.integers, other.integers)
        assert (one.input, one.output) == (other.input, other.output)
