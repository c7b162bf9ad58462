"""The one step: its order, against the equation in float64."""

from __future__ import annotations

import numpy as np
import pytest

from engines.arrays import Float32, Float64, Int64
from engines.chain.step import ChainState, Move, advance, evaluate
from engines.samplers.table import TableStep

SHAPE = (2, 3, 4, 4)
W, GAIN, OFFSET, STATE_GAIN, SIGMA = 2.5, (0.9, 1.1, 1.0), (0.1, 0.0, -0.2), (0.05, -0.1, 0.0), 0.7
CLIP = 0.8


def _row(input_scale: float = 0.5, clip: float | None = CLIP) -> TableStep:
    return TableStep(
        timestep=321.0, alpha_bar=0.3, x_coeff=0.6, out_coeff=-0.4, prediction_coeffs=(1.5, -1.2), epsilon_coeffs=(0.0, 1.0),
        history_coeffs=(0.3, -0.1), sigma=SIGMA, input_scale=input_scale, clip=clip,
    )  # fmt: skip


def _random(*shape: int) -> Float32:
    return np.random.default_rng(len(shape)).standard_normal(shape, dtype=np.float32)


def _per_channel(values: tuple[float, ...]) -> Float64:
    return np.array(values).reshape(3, 1, 1)


@pytest.mark.parametrize("noisy", [True, False])
def test_a_step_guides_corrects_updates_and_adds_noise_in_this_order(noisy: bool) -> None:
    x, outputs, before, z = _random(*SHAPE), _random(2, *SHAPE), [2 * _random(*SHAPE)], _random(*SHAPE) if noisy else None
    move = Move(4, _row(), "w4a8", W, GAIN, OFFSET, STATE_GAIN, SIGMA)
    after = advance(ChainState(x, before), outputs, move, z)
    conditional, unconditional = outputs.astype(np.float64)
    q = unconditional + W * (conditional - unconditional)
    e = _per_channel(GAIN) * q + _per_channel(OFFSET) + _per_channel(STATE_GAIN) * x
    m = np.clip(1.5 * x - 1.2 * e, -CLIP, CLIP)
    expected = 0.6 * x - 0.4 * e + 0.3 * m - 0.1 * before[0] + (0.0 if z is None else SIGMA * z)
    assert after.x.dtype == np.float32
    np.testing.assert_allclose(after.x, expected, rtol=0, atol=1e-5)
    assert len(after.history) == 2
    np.testing.assert_allclose(after.history[0], m, rtol=0, atol=1e-5)
    assert after.history[1] is before[0]


def test_a_step_changes_nothing_that_it_is_given() -> None:
    x, outputs, z = _random(*SHAPE), _random(1, *SHAPE), _random(*SHAPE)
    copies = [values.copy() for values in (x, outputs, z)]
    advance(ChainState(x), outputs, Move(0, _row(), "w4a8", 1.0, GAIN, OFFSET, STATE_GAIN, SIGMA), z)
    for given, copy in zip((x, outputs, z), copies, strict=True):
        np.testing.assert_array_equal(given, copy)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_network_is_asked_at_the_scaled_state(scale: float) -> None:
    x, rows, asked = _random(*SHAPE), np.array([3, 1]), list[tuple[Float32, float, Int64]]()

    def network(x: Float32, timestep: float, rows: Int64) -> Float32:
        asked.append((x, timestep, rows))
        return x[None]

    out = evaluate(network, x, _row(input_scale=scale), rows)
    ((state, timestep, of_samples),) = asked
    np.testing.assert_array_equal(state, np.float32(scale) * x)
    assert (timestep, out.shape) == (321.0, (1, *SHAPE))
    assert of_samples is rows


def test_a_move_without_correction_leaves_the_output_as_it_is() -> None:
    x, outputs = _random(*SHAPE), _random(1, *SHAPE)
    plain = advance(ChainState(x), outputs, Move(0, _row(clip=None), "fp32", 7.0), None)
    expected = 0.6 * x - 0.4 * outputs[0] + 0.3 * (1.5 * x - 1.2 * outputs[0])
    np.testing.assert_allclose(plain.x, expected, rtol=0, atol=1e-5)
