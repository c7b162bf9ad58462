"""The noise against literal values, and against a second implementation written from the module's prose in integer arithmetic."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy import stats

from engines.arrays import Float32
from engines.chain.noise import NoiseSource
from engines.errors import UsageError

MASK = 2**64 - 1

# Random123's kat_vectors, philox4x64 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (MASK, MASK, MASK, MASK),
        (MASK, MASK),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def philox4x64_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c2, 2**64)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c0, c1, c2, c3


def words(seed: int, sample: int, step: int, stream: int) -> Iterator[int]:
    for block in itertools.count(1):
        yield from philox4x64_10((block, sample, step, stream), (seed, 0))


def normals(count: int, seed: int, sample: int, step: int, stream: int) -> list[np.float32]:
    source = words(seed, sample, step, stream)
    values: list[float] = []
    while len(values) < count:
        u1, u2 = ((next(source) >> 11) + 1) / 2**53, (next(source) >> 11) / 2**53
        radius = math.sqrt(-2 * math.log(u1))
        values += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    return [np.float32(value) for value in values[:count]]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_second_implementation_and_numpy_give_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    assert philox4x64_10(counter, key) == answer
    as_integer = sum(word << 64 * place for place, word in enumerate(counter))
    before = np.random.Philox(counter=(as_integer - 1) % 2**256, key=key[0] + (key[1] << 64))
    assert tuple(before.random_raw(4).tolist()) == answer


ADDRESSES = [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**63 - 1, 999), (2**63 + 5, 2**40, 17)]


@pytest.mark.parametrize(("seed", "sample", "step"), ADDRESSES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4, 5)])
def test_normals_are_those_of_the_specification(shape: tuple[int, ...], seed: int, sample: int, step: int) -> None:
    noise, size = NoiseSource(seed, shape), math.prod(shape)
    start, fresh = noise.start(np.array([sample])), noise.step(step, np.array([sample]))
    assert start.dtype == fresh.dtype == np.float32
    assert start.shape == fresh.shape == (1, *shape)
    assert start.ravel().tolist() == normals(size, seed, sample, 0, stream=0)
    assert fresh.ravel().tolist() == normals(size, seed, sample, step, stream=1)


def test_literal_normals() -> None:
    noise = NoiseSource(1234, (5,))
    samples = np.array([0, 7])
    assert noise.start(samples).view(np.uint32).tolist() == [
        [0xBFA01106, 0xBF4A66EE, 0xBEDC1525, 0x3F3E3DEE, 0x3F2AED36],
        [0x3F04427C, 0x3F035502, 0xBEB4DD7F, 0xBF0B6EFF, 0xBF70E8F0],
    ]
    assert noise.step(3, samples).view(np.uint32).tolist() == [
        [0x3F1A573D, 0x3F38E82B, 0x3EF56FB9, 0x3E09B953, 0xBD5DAF5D],
        [0xBE7CBBF5, 0x3F6ACB89, 0xBE7A90DF, 0x3FD031FE, 0x3F8EFD16],
    ]


def test_literal_rows() -> None:
    assert NoiseSource(1234, ()).row(np.arange(12), 10).tolist() == [5, 6, 3, 0, 3, 0, 2, 1, 8, 0, 9, 5]


@pytest.mark.parametrize("draw", [NoiseSource.start, lambda noise, samples: noise.step(11, samples)])
def test_a_sample_is_the_same_bit_for_bit_in_any_batch_and_order(draw: Callable[..., Float32]) -> None:
    noise, samples = NoiseSource(5, (3, 9, 7)), np.arange(40)
    together = draw(noise, samples)
    shuffled = np.random.default_rng(0).permutation(samples)
    np.testing.assert_array_equal(draw(noise, shuffled), together[shuffled])
    np.testing.assert_array_equal(
        np.concatenate([draw(noise, samples[:1]), draw(noise, samples[1:18]), draw(noise, samples[18:])]), together
    )
    np.testing.assert_array_equal(draw(NoiseSource(5, (3, 9, 7)), samples), together)


def test_rows_do_not_depend_on_the_batch() -> None:
    noise, samples = NoiseSource(5, (2,)), np.arange(40)
    together = noise.row(samples, 1000)
    assert together.dtype == np.int64
    assert [noise.row(samples[i : i + 1], 1000).item() for i in samples] == together.tolist()


def test_seeds_samples_steps_and_streams_all_give_different_noise() -> None:
    samples = np.array([0, 1])
    draws = [NoiseSource(seed, (4096,)).start(samples) for seed in (0, 1)]
    draws += [NoiseSource(seed, (4096,)).step(step, samples) for seed in (0, 1) for step in (0, 1)]
    correlation = np.corrcoef(np.concatenate(draws))
    assert correlation.shape == (12, 12)
    assert np.abs(correlation - np.eye(12)).max() < 5 / math.sqrt(4096)


def test_normals_are_standard_normal_and_neighbours_are_independent() -> None:
    z = NoiseSource(42, (3, 64, 64)).step(0, np.arange(32)).astype(np.float64).ravel()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(np.mean(z[::2] * z[1::2])) < 4 / math.sqrt(n / 2)
    assert abs(np.mean(z[::2] ** 2 * z[1::2] ** 2) - 1) < 4 * math.sqrt(8 / (n / 2))


def test_rows_are_equally_likely() -> None:
    rows = NoiseSource(42, ()).row(np.arange(10_000), 10)
    assert stats.chisquare(np.bincount(rows, minlength=10)).pvalue > 0.01


def test_rows_reject_the_words_that_would_bias_them() -> None:
    seed, count = 9, 3 * 2**61  # 2^64 is 2 2/3 times the count, so a quarter of the words is rejected
    rejected, expected = 0, []
    for sample in range(100):
        for word in words(seed, sample, 0, stream=2):
            if word * count % 2**64 >= 2**64 % count:
                expected.append(word * count // 2**64)
                break
            rejected += 1
    assert rejected > 10
    assert NoiseSource(seed, ()).row(np.arange(100), count).tolist() == expected


def test_the_only_row_is_always_chosen() -> None:
    assert NoiseSource(0, ()).row(np.arange(3), 1).tolist() == [0, 0, 0]


def test_an_empty_batch_is_empty() -> None:
    noise, nobody = NoiseSource(0, (3, 2)), np.array([], dtype=np.int64)
    assert noise.start(nobody).shape == (0, 3, 2)
    assert noise.row(nobody, 4).shape == (0,)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_refuses_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match=rf"(?s)The seed is out of range\..*{seed}"):
        NoiseSource(seed, (1,))


def test_refuses_a_negative_sample_index_and_an_empty_table() -> None:
    noise = NoiseSource(0, (1,))
    for draw in (noise.start, lambda samples: noise.step(0, samples), lambda samples: noise.row(samples, 2)):
        with pytest.raises(UsageError, match=r"(?s)A sample index is out of range\..*-3"):
            draw(np.array([4, -3]))
    with pytest.raises(UsageError, match=r"(?s)no conditioning row.*0 rows"):
        noise.row(np.array([0]), 0)
