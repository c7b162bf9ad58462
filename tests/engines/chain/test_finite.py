"""NaN and infinity stop a chain where they arise, and the step, the timestep and the engine are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.denoiser import Denoiser
from engines.chain.finite import NotFiniteError, is_finite
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.cli import main
from tests.engines.apps.evaluate.conftest import TinyExtractor

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

SAMPLES = np.array([3, 1, 4], dtype=np.int64)
W8A8 = "graphs/onnxruntime/w8a8.onnx"


@pytest.mark.parametrize("shape", [(1,), (3, 2, 5), (2, 3, 33, 35)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_is_found_wherever_it_is(shape: tuple[int, ...], bad: float) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert is_finite(values)
    for place in {0, values.size // 2, values.size - 1}:
        spoilt = values.copy()
        spoilt.flat[place] = bad
        assert not is_finite(spoilt)


def test_large_values_are_finite_and_two_infinities_are_not() -> None:
    assert is_finite(np.full(100, 3e38, dtype=np.float32))
    assert not is_finite(np.array([math.inf, -math.inf], dtype=np.float32))


@pytest.fixture
def schedule(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


def spoilt(value: float, where: float) -> Denoiser:
    """A network that gives one such value at one timestep."""

    def network(x: Float32, timestep: float, rows: Int64) -> Float32:
        del rows
        out = np.zeros((1, *x.shape), dtype=np.float32)
        out[0, 1, 0, 3, 4] = value if timestep == where else 0.0
        return out

    return network


def sample(schedule: Schedule, network: Denoiser) -> Float32:
    chain = Chain(schedule, {"w4a8": network}, "w4a8")
    return chain.sample(NoiseSource(5, (1, 8, 8)), SAMPLES, np.zeros_like(SAMPLES))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", range(4))
def test_chain_stops_with_the_step_the_timestep_and_the_precision(schedule: Schedule, value: float, step: int) -> None:
    timestep = schedule.steps[step].timestep
    with pytest.raises(NotFiniteError) as caught:
        sample(schedule, spoilt(value, timestep))
    assert str(caught.value).startswith(
        f"The network's output is not finite.\n  found:    NaN or infinity from w4a8 at step {step}, timestep {timestep:g}\n"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_coefficient_hides_it(schedule: Schedule, value: float) -> None:
    """Neither a clip nor a coefficient, gain or guidance of zero."""
    zero = schedule.steps[0].corrections["w4a8"].model_copy(update={"gain": (0.0,)})
    hiding = {"out_coeff": 0.0, "clip": 1.0, "history_coeffs": (1.0,), "corrections": {"w4a8": zero}}
    steps = tuple(step.model_copy(update=hiding) for step in schedule.steps)
    with pytest.raises(NotFiniteError, match="at step 3"):
        sample(schedule.model_copy(update={"steps": steps}), spoilt(value, schedule.steps[3].timestep))


def test_finite_outputs_that_a_step_makes_infinite_are_the_step_s_fault(schedule: Schedule) -> None:
    first, *others = (step.model_copy(update={"x_coeff": 1e12}) for step in schedule.steps)
    with pytest.raises(NotFiniteError, match=r"coefficients of a step are too large.(?s:.*)at step 3"):
        sample(schedule.model_copy(update={"steps": (first, *others)}), spoilt(0.0, 0.0))


@pytest.fixture
def spoilt_bundle(own_tiny: TinyBundle) -> TinyBundle:
    """The engine that takes step 2, at timestep 250, gives NaN."""
    model = onnx.load(own_tiny.folder / W8A8)
    (second,) = (one for one in model.graph.initializer if one.name == "second")
    second.CopyFrom(numpy_helper.from_array(np.full(tuple(second.dims), np.nan, dtype=np.float32), "second"))
    onnx.save(model, own_tiny.folder / W8A8)
    own_tiny.rehash(W8A8)
    return own_tiny


@pytest.mark.parametrize("command", ["sample", "evaluate", "bench", "compare"])
def test_every_command_names_the_step(spoilt_bundle: TinyBundle, tmp_path: Path, command: str) -> None:
    features = TinyExtractor().save(tmp_path / "extractor.onnx")
    np.savez(tmp_path / "images.npz", samples=np.random.default_rng(1).uniform(-1, 1, (20, 1, 8, 8)).astype(np.float32))
    options: dict[str, list[object]] = {
        "sample": ["--num", 2, "--seed", 1, "--output", tmp_path / "out"],
        "evaluate": ["--num", 50, "--reference", tmp_path / "images.npz", "--features", features],
        "bench": ["--rounds", 1],
        "compare": ["--num", 2],
    }
    result = CliRunner().invoke(main, [str(argument) for argument in (command, spoilt_bundle.folder, *options[command])])
    step = "step 0, timestep 750" if command in ("compare", "bench") else "step 2, timestep 250"
    assert result.exit_code == 1
    assert f"NaN or infinity from w8a8 at {step}\n" in result.stderr
    assert not list(tmp_path.glob("out/*.png"))
