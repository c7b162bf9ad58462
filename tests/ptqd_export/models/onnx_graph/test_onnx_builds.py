"""The page's example from `init` to samples: a graph without its code, and its own chains on ONNX Runtime as the oracle."""

from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest

from engines.apps.sample.sample_command import SampleRequest, sample_bundle
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from engines.samplers import compile_sampler
from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.load import load_model
from ptqd_export.plan import PlanFile, load_plan, plan_of
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.models.onnx_graph.onnx_graphs import Interface, graph_file, node, random

if TYPE_CHECKING:
    from engines.arrays import Float32
    from tests.ptqd_export.models.onnx_graph.onnx_graphs import SmallUNet

PAGE = Path(__file__).parents[4] / "docs" / "onnx-models.md"
LEVELS = np.linspace(0, 1, 10, dtype=np.float32)
ROWS = np.array([2, 9])


@pytest.fixture(scope="module")
def example(small_graph: tuple[Path, SmallUNet], tmp_path_factory: pytest.TempPathFactory) -> PlanFile:
    """The page's plan beside a small graph, built."""
    folder = tmp_path_factory.mktemp("onnx")
    shutil.copy(small_graph[0], folder / "denoiser.onnx")
    np.savez(folder / "levels.npz", level=LEVELS)
    (plan,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (folder / "plan.json").write_text(plan)
    plan_file = load_plan(folder / "plan.json")
    run_build(plan_file)
    return plan_file


def own(example: PlanFile, x: Float32, sigma: float) -> Float32:
    """What the graph itself computes."""
    session = onnxruntime.InferenceSession(str(example.folder / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"noisy": x, "sigma": np.full(len(x), sigma, np.float32), "level": LEVELS[ROWS]})
    return np.asarray(out)


def sampled(example: PlanFile, schedule: str = "default", precision: str = "fp32") -> tuple[NoiseSource, Float32]:
    noise, bundle = NoiseSource(1, (2, 8, 8)), Bundle.open(example.output_path)
    return noise, ChainChoice(schedule=schedule, precision=precision, correction="off").open(bundle, 2).sample(noise, np.arange(2), ROWS)


def test_one_step_of_full_precision_is_the_graph_s(example: PlanFile) -> None:
    noise, found = sampled(example)
    np.testing.assert_allclose(found, own(example, np.float32(80) * noise.start(np.arange(2)), 80), atol=1e-4)


def test_several_steps_are_those_of_the_consistency_paper(example: PlanFile) -> None:
    """Algorithm 1 of arXiv 2303.01469 on levels of equation 5 of 2206.00364."""
    add_schedule(example.output_path, "three", ScheduleRequest(sampler="consistency", steps=3, eta=1.0))
    noise, found = sampled(example, "three")
    low, high = 0.002, 80.0
    levels = np.linspace(high ** (1 / 7), low ** (1 / 7), 4)[:3] ** 7
    x = own(example, (high * noise.start(np.arange(2))).astype(np.float32), high)
    for step, sigma in enumerate(levels[1:]):
        x = own(example, (x + np.sqrt(sigma**2 - low**2) * noise.step(step, np.arange(2))).astype(np.float32), float(sigma))
    np.testing.assert_allclose(found, x, atol=1e-4)


def test_heun_is_that_of_edm(example: PlanFile) -> None:
    """Algorithm 1 of arXiv 2206.00364 without noise."""
    add_schedule(example.output_path, "edm", ScheduleRequest(sampler="heun", steps=4, eta=0.0))
    noise, found = sampled(example, "edm")
    t = [*np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 4) ** 7, 0.0]
    x: Any = t[0] * noise.start(np.arange(2)).astype(np.float64)
    for now, after in pairwise(t):
        d = (x - own(example, x.astype(np.float32), now)) / now
        guess = x + (after - now) * d
        if after > 0:
            d = (d + (guess - own(example, guess.astype(np.float32), after)) / after) / 2
        x = x + (after - now) * d
    np.testing.assert_allclose(found, x, atol=2e-4)


def test_both_precisions_sample_near_the_graph(example: PlanFile, tmp_path: Path) -> None:
    samples = {precision: sampled(example, precision=precision)[1] for precision in ("fp32", "w8a8", "w4a8")}
    errors = {name: float(np.abs(samples[name] - samples["fp32"]).mean() / samples["fp32"].std()) for name in ("w8a8", "w4a8")}
    assert 0 < errors["w8a8"] < errors["w4a8"] < 0.5
    assert (
        sum(sample_bundle(SampleRequest(example.output_path, tmp_path, 2, 1, classes=(2, 9), format="npz")).record.precision_steps.values())
        == 1
    )


def test_layers_are_those_of_the_graph(example: PlanFile) -> None:
    names = {one["name"] for one in json.loads(next((example.output_path / "statistics").rglob("w8a8.json")).read_text())["layers"]}
    assert names == {"conv_in", "time", "level", "down", "q", "k", "v", "o", "up", "conv_out"}


def test_init_says_what_it_read_and_what_it_assumed(example: PlanFile) -> None:
    plan = starter_plan(example.folder / "denoiser.onnx", "onnxruntime", example.folder)
    said = "\n".join(plan.comments)
    assert "state noisy: float [batch, 2, 8, 8]; time sigma: float [batch]; output denoised" in said
    assert "assumed, because a graph does not say it: noise levels from 0.002 to 80" in said
    assert "an .npz with level: float32 [rows]" in said
    assert plan.model.graph is not None
    assert (plan.model.onnx, plan.model.graph.time_unit, plan.model.graph.state_form, plan.output) == (
        "denoiser.onnx",
        "sigma",
        "added",
        "build/denoiser",
    )
    completed = plan.model_copy(update={"model": plan.model.model_copy(update={"conditions": "levels.npz"})})
    assert load_model(PlanFile(plan_of(json.loads(completed.resolved_json())), example.folder)).sample_shape == (2, 8, 8)


def test_init_takes_the_scheduler_beside_the_graph(tmp_path: Path) -> None:
    """As Optimum writes a pipeline; sizes that the graph leaves open are assumed, and said."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    nodes = [
        node("Cast", "timestep", "t", to=1),
        node("Mul", ["t", "zero"], "z"),
        node("Add", ["sample", "z"], "h"),
        node("Conv", ["h", "conv.weight"], "out"),
    ]
    inputs: dict[str, Interface] = {
        "sample": ("FLOAT", ["batch", 4, "height", "width"]),
        "timestep": ("INT64", []),
        "y": ("INT64", ["batch"]),
    }
    path = graph_file(
        tmp_path / "unet" / "model.onnx",
        nodes,
        inputs,
        {"zero": np.float32(0), "conv.weight": random(4, 4, 1, 1)},
        output=("out", ["batch", 4, "height", "width"]),
    )
    plan = starter_plan(path, "onnxruntime", tmp_path)
    assert plan.model.graph is not None
    assert (plan.model.graph.scheduler, plan.model.graph.predicts, plan.model.graph.shape) == (
        "scheduler/scheduler_config.json",
        "v_prediction",
        (4, 64, 64),
    )
    assert (plan.sampler.name, plan.model.graph.time_unit) == ("euler", "timestep")
    assert any("if y is a class label" in note for note in plan.comments)


def test_a_table_of_timesteps_takes_whole_ones_alone(tmp_path: Path) -> None:
    """`init` says so, and a chain that visits others is refused with the timestep."""
    nodes = [node("Gather", ["table", "t"], "e"), node("Unsqueeze", ["e", "last"], "v"), node("Add", ["x", "v"], "out")]
    inputs: dict[str, Interface] = {"x": ("FLOAT", ["n", 3, 2, 2]), "t": ("INT64", ["n"])}
    constants = {"table": random(1000, 3), "last": np.array([2, 3])}
    path = graph_file(tmp_path / "g.onnx", nodes, inputs, constants, output=("out", ["n", 3, 2, 2]))
    plan = starter_plan(path, "onnxruntime", tmp_path)
    assert any("looks t up in a table" in note for note in plan.comments)
    schedule = load_model(PlanFile(plan, tmp_path)).noise_schedule
    compile_sampler("ddim", 7, 0.0, schedule)
    with pytest.raises(UsageError, match=r"euler: timestep 832\.5"):
        compile_sampler("euler", 7, 0.0, schedule.model_copy(update={"timestep_spacing": "linspace"}))


def test_a_state_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    nodes = [node("Add", ["a", "b"], "c"), node("Add", ["c", "t"], "out")]
    inputs: dict[str, Interface] = {"a": ("FLOAT", ["n", 1, 2, 2]), "b": ("FLOAT", ["n", 1, 2, 2]), "t": ("FLOAT", ["n", 1, 1, 1])}
    path = graph_file(tmp_path / "g.onnx", nodes, inputs, output=("out", ["n", 1, 2, 2]))
    with pytest.raises(UsageError, match="cannot be told which part of the graph is the state") as caught:
        starter_plan(path, "onnxruntime", tmp_path)
    assert "a: float [n, 1, 2, 2]; b: float [n, 1, 2, 2]; t: float [n, 1, 1, 1]" in str(caught.value)
    assert "model.graph.state" in str(caught.value)


def test_labels_and_constants_of_a_graph(tmp_path: Path) -> None:
    """A label needs no table, and a constant input is no condition."""
    nodes = [
        node("Gather", ["table", "y"], "e"),
        node("Unsqueeze", ["e", "last"], "v"),
        node("Add", ["x", "v"], "h"),
        node("Mul", ["h", "scale"], "m"),
        node("Add", ["m", "t"], "out"),
    ]
    inputs: dict[str, Interface] = {
        "x": ("FLOAT", ["n", 3, 2, 2]),
        "t": ("FLOAT", ["n", 1, 1, 1]),
        "y": ("INT32", ["n"]),
        "scale": ("FLOAT", []),
    }
    path = graph_file(tmp_path / "g.onnx", nodes, inputs, {"table": random(5, 3), "last": np.array([2, 3])}, output=("out", ["n", 3, 2, 2]))
    graph = {"schedule": {}, "time_unit": "fraction", "inputs": {"y": {"labels": 5}, "scale": {"value": 2.0}}}
    plan = {"model": {"onnx": path.name, "graph": graph, "null_class": 4}, "sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"]}
    model = load_model(PlanFile(plan_of({**plan, "target": {"name": "onnxruntime"}, "output": "o"}), tmp_path))
    assert (model.conditioning and model.conditioning.rows, model.null_class, model.adapter.conditions) == (4, 4, ("y",))
    x, t, y = model.example_inputs(3)
    expected = (x.numpy() + random(5, 3)[y.numpy()][:, :, None, None]) * 2 + t.numpy()[:, None, None, None] / 1000
    np.testing.assert_allclose(model.adapter(x, t, y).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_an_image_behind_the_state_is_a_condition(tmp_path: Path) -> None:
    """Super-resolution and inpainting: the graph takes 5 channels and returns 3."""
    nodes = [node("Add", ["sample", "t"], "h"), node("Conv", ["h", "conv.weight"], "out")]
    inputs: dict[str, Interface] = {"sample": ("FLOAT", ["n", 5, 2, 2]), "t": ("FLOAT", ["n", 1, 1, 1])}
    path = graph_file(tmp_path / "g.onnx", nodes, inputs, {"conv.weight": random(3, 5, 1, 1)}, output=("out", ["n", 3, 2, 2]))
    np.savez(tmp_path / "c.npz", image=random(4, 2, 2, 2))
    section = {"model": {"onnx": path.name, "conditions": "c.npz", "graph": {"schedule": {}, "time_unit": "fraction"}}}
    rest = {"sampler": {"name": "ddim", "steps": 2}, "precisions": ["w8a8"], "target": {"name": "onnxruntime"}, "output": "o"}
    model = load_model(PlanFile(plan_of({**section, **rest}), tmp_path))
    x, t, image = model.example_inputs(2)
    assert (model.sample_shape, x.shape, image.shape) == ((3, 2, 2), (2, 3, 2, 2), (2, 2, 2, 2))
    taken = np.concatenate([x.numpy(), image.numpy()], 1) + t.numpy()[:, None, None, None] / 1000
    np.testing.assert_allclose(
        model.adapter(x, t, image).numpy(), np.einsum("oi,bihw->bohw", random(3, 5, 1, 1)[:, :, 0, 0], taken), atol=1e-5
    )


def test_init_refuses_operators_that_a_build_would_refuse(tmp_path: Path) -> None:
    nodes = [node("Frobnicate", "x", "a", "acme"), node("RandomNormalLike", "a", "r"), node("Add", ["a", "r"], "out")]
    inputs: dict[str, Interface] = {"x": ("FLOAT", ["n", 1, 4, 4]), "t": ("INT64", ["n"])}
    path = graph_file(tmp_path / "denoiser.onnx", nodes, inputs, output=("out", ["n", 1, 4, 4]))
    with pytest.raises(UsageError, match=r"operators that are not supported(.|\n)*RandomNormalLike, acme\.Frobnicate; random operators"):
        starter_plan(path, "onnxruntime", tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"cannot be read(.|\n)*no output"):
        starter_plan(path, "onnxruntime", tmp_path)
