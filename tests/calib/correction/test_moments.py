"""Moments against direct two-pass arithmetic on the values themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from calib.correction.moments import GUIDED, PLAIN, Moments, observe
from engines.arrays import Float32, Float64, Int64
from engines.errors import BundleError

SAMPLES, CHANNELS, SHAPE = 22, 3, (4, 5)


def _values(variables: int = 3, mean: float = 1000.0) -> Float64:
    """Correlated variables, the mean far off zero: sums of squares would lose six digits."""
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((variables, SAMPLES, CHANNELS, *SHAPE))
    mixed: Float64 = np.tensordot(rng.standard_normal((variables, variables)), noise, axes=1) + mean
    return mixed


def _folds() -> Int64:
    return np.arange(SAMPLES, dtype=np.int64) % 4


def _assert_same(one: Moments, other: Moments, tolerance: float = 1e-12) -> None:
    """Equal to a relative tolerance; off the diagonal relative to the two variances, since a covariance may be near zero."""
    np.testing.assert_array_equal(one.count, other.count)
    np.testing.assert_array_equal(one.samples, other.samples)
    np.testing.assert_allclose(one.mean, other.mean, rtol=tolerance)
    spread = np.sqrt(np.einsum("fcii->fci", other.scatter))
    assert spread.min() > 0
    scale = spread[..., :, None] * spread[..., None, :]
    np.testing.assert_allclose(one.scatter / scale, other.scatter / scale, rtol=0, atol=tolerance)


def test_moments_are_those_of_each_fold_and_channel() -> None:
    values, folds = _values(), _folds()
    moments = Moments.of(PLAIN, values, folds)
    assert moments.samples.tolist() == [6, 6, 5, 5]
    assert moments.count.tolist() == [120, 120, 100, 100]
    for fold in range(4):
        for channel in range(CHANNELS):
            seen = values[:, folds == fold, channel].reshape(3, -1)
            np.testing.assert_allclose(moments.mean[fold, channel], seen.mean(axis=1), rtol=1e-13)
            np.testing.assert_allclose(moments.scatter[fold, channel], np.cov(seen, bias=True) * seen.shape[1], rtol=1e-9)


@pytest.mark.parametrize("size", [1, 3, 22])
def test_merged_shards_equal_one_pass(size: int) -> None:
    values, folds = _values(), _folds()
    merged = Moments.empty(PLAIN, CHANNELS)
    for begin in range(0, SAMPLES, size):
        merged = merged.merge(Moments.of(PLAIN, values[:, begin : begin + size], folds[begin : begin + size]))
    _assert_same(merged, Moments.of(PLAIN, values, folds))


def test_pooled_folds_equal_one_fold() -> None:
    values = _values()
    _assert_same(Moments.of(PLAIN, values, _folds()).pooled(), Moments.of(PLAIN, values, np.zeros(SAMPLES, np.int64), fold_count=1))


def test_leaving_a_fold_out_equals_never_having_seen_it() -> None:
    values, folds = _values(), _folds()
    rest = Moments.of(PLAIN, values, folds).leave_out(2)
    assert rest.fold_count == 3
    seen = folds != 2
    _assert_same(rest.pooled(), Moments.of(PLAIN, values[:, seen], folds[seen] * 0, fold_count=1))
    _assert_same(Moments.of(PLAIN, values, folds).only(2).merge(rest.pooled()), Moments.of(PLAIN, values, folds).pooled())


def test_means_and_covariances_are_over_all_folds() -> None:
    values = _values()
    moments = Moments.of(PLAIN, values, _folds())
    for channel in range(CHANNELS):
        seen = values[:, :, channel].reshape(3, -1)
        covariance = np.cov(seen, bias=True)
        assert moments.mean_of("d")[channel] == pytest.approx(seen[2].mean(), rel=1e-13)
        assert moments.covariance("e", "d")[channel] == pytest.approx(covariance[1, 2], rel=1e-9)
        assert moments.variance("x")[channel] == pytest.approx(covariance[0, 0], rel=1e-9)


@pytest.mark.parametrize("guidance", [1.0, 1.5, 7.5])
def test_guided_projection_equals_moments_of_the_guided_output(guidance: float) -> None:
    values = _values(variables=5, mean=3.0)
    x, e_cond, e_uncond, d_cond, d_uncond = values
    direct = np.stack([x, e_uncond + guidance * (e_cond - e_uncond), d_uncond + guidance * (d_cond - d_uncond)])
    _assert_same(Moments.of(GUIDED, values, _folds()).guided(guidance), Moments.of(PLAIN, direct, _folds()))


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_guidance_up_to_one_is_the_conditional_output(guidance: float) -> None:
    moments = Moments.of(GUIDED, _values(variables=5, mean=3.0), _folds())
    _assert_same(moments.guided(guidance), moments.guided(1.0))


def test_guidance_leaves_unguided_moments_alone() -> None:
    moments = Moments.of(PLAIN, _values(), _folds())
    assert moments.guided(7.5) is moments


def _outputs(branches: int) -> tuple[Float32, Float32, Float32]:
    x, *outputs = np.random.default_rng(5).standard_normal((1 + 2 * branches, SAMPLES, CHANNELS, *SHAPE)).astype(np.float32)
    return x, np.stack(outputs[:branches]), np.stack(outputs[branches:])


def test_observing_two_branches_keeps_them_jointly() -> None:
    x, e, q = _outputs(branches=2)
    values = np.concatenate([x[None], e, q.astype(np.float64) - e])
    moments = observe(x, e, q, _folds())
    assert moments.variables == ("x", "e_cond", "e_uncond", "d_cond", "d_uncond")
    _assert_same(moments, Moments.of(GUIDED, values, _folds()))


def test_the_difference_is_taken_in_float64() -> None:
    x = np.zeros((1, 1, 2), np.float32)
    e, q = np.full((1, 1, 1, 2), 1e-9, np.float32), np.ones((1, 1, 1, 2), np.float32)
    assert (q - e).max() == 1, "float32 would lose e altogether"
    assert observe(x, e, q, np.zeros(1, np.int64)).mean_of("d")[0] == 1 - float(np.float32(1e-9))


def test_outputs_that_would_only_broadcast_are_refused() -> None:
    x, e, q = _outputs(branches=2)
    with pytest.raises(ValueError, match="do not match states"):
        observe(x, e, q[:1], _folds())


def test_moments_of_other_variables_do_not_merge() -> None:
    moments = Moments.of(PLAIN, _values(), _folds())
    with pytest.raises(ValueError, match="cannot be merged"):
        moments.merge(Moments.empty(GUIDED, CHANNELS))


def test_json_gives_back_every_bit() -> None:
    moments = Moments.of(PLAIN, _values(), _folds())
    stored = json.loads(json.dumps(moments.to_json(), allow_nan=False))
    assert list(stored) == ["variables", "count", "samples", "mean", "scatter"]
    again = Moments.from_json(stored)
    assert again.variables == moments.variables
    for field in ("count", "samples", "mean", "scatter"):
        np.testing.assert_array_equal(getattr(again, field), getattr(moments, field))
        assert getattr(again, field).dtype == getattr(moments, field).dtype


@pytest.mark.parametrize(
    ("field", "damaged"),
    [
        ("variables", ["x", "e"]),
        ("variables", ["x", "e", ["d"]]),
        ("count", [120, 120, 100]),
        ("count", [120.0, 120.0, 100.0, 100.0]),
        ("samples", [6, 6, 5, 500]),
        ("samples", [6, 6, 5, -5]),
        ("mean", 3.0),
        ("mean", [[["a"]]]),
        ("mean", [[[float("nan")] * 3] * CHANNELS] * 4),
        ("scatter", [[[[1.0] * 3] * 2] * CHANNELS] * 4),
        ("scatter", [[1.0], [1.0, 2.0]]),
        ("scatter", [[[[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 1.0]]] * CHANNELS] * 4),
        ("scatter", [[[[1.0, 1.1, 0.0], [1.1, 1.0, 0.0], [0.0, 0.0, 1.0]]] * CHANNELS] * 4),
        ("scatter", None),
    ],
)
def test_damaged_moments_are_refused(field: str, damaged: Any) -> None:
    stored = Moments.of(PLAIN, _values(), _folds()).to_json()
    with pytest.raises(BundleError, match="damaged"):
        Moments.from_json(stored | {field: damaged})


def test_missing_fields_are_refused() -> None:
    stored = Moments.of(PLAIN, _values(), _folds()).to_json()
    with pytest.raises(BundleError, match="damaged"):
        Moments.from_json({key: value for key, value in stored.items() if key != "scatter"})
