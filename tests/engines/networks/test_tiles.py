"""Decoding in tiles, with decoders that are formulas."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from engines.arrays import Float32
from engines.bundle.first_stage_record import DecoderRecord, TileRecord
from engines.networks.tiles import decode_in_tiles, encode_in_tiles, tile_places


@pytest.mark.parametrize(
    ("side", "tile", "overlap", "places"),
    [(20, 8, 2, [0, 6, 12]), (8, 8, 2, [0]), (9, 8, 2, [0, 1]), (15, 8, 2, [0, 3, 7]), (256, 128, 32, [0, 64, 128])],
)
def test_tiles_cover_a_side(side: int, tile: int, overlap: int, places: list[int]) -> None:
    assert tile_places(side, tile, overlap) == places


def test_as_few_tiles_as_the_overlap_allows_reach_both_ends() -> None:
    for side in range(8, 60):
        places = tile_places(side, 8, 3)
        assert (places[0], places[-1] + 8) == (0, side)
        assert all(0 < after - before <= 5 for before, after in pairwise(places))
        assert side > 8 + 5 * (len(places) - 2) or len(places) == 1


def _smooth(states: Float32) -> Float32:
    """A decoder of one convolution: each pixel is the sum of 3 x 3 latents, zeros outside, at twice the size."""
    padded = np.pad(states, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = states.shape[2:]
    total = sum(padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.asarray(total).repeat(2, 2).repeat(2, 3)


def test_a_convolution_in_tiles_is_the_whole_one_away_from_the_edges_of_tiles() -> None:
    states = np.random.default_rng(0).normal(size=(2, 3, 20, 15)).astype(np.float32)
    tiled, whole = decode_in_tiles(_smooth, states, TileRecord(sides=(8, 8), overlap=2)), _smooth(states)
    inner = [np.ones(2 * side, dtype=bool) for side in states.shape[2:]]
    for axis, side in enumerate(states.shape[2:]):
        for place in tile_places(side, 8, 2):
            for latent in {place, place + 7} - {0, side - 1}:  # the convolution misses a neighbour here
                inner[axis][2 * latent : 2 * latent + 2] = False
    kept = np.ix_(np.arange(2), np.arange(3), *map(np.flatnonzero, inner))
    np.testing.assert_allclose(tiled[kept], whole[kept], atol=1e-5)
    assert [int(one.sum()) for one in inner] == [32, 24]
    assert np.abs(tiled - whole).max() > 0.1


def test_an_encoder_in_tiles_is_the_whole_one_where_it_sees_all_that_counts() -> None:
    """The mean of 2 x 2 pixels sees nothing behind an edge; where tiles overlap, both say the same."""
    images = np.random.default_rng(0).normal(size=(2, 3, 40, 30)).astype(np.float32)

    def mean(image: Float32) -> Float32:
        batch, channels, height, width = image.shape
        return np.asarray(image.reshape(batch, channels, height // 2, 2, width // 2, 2).mean((3, 5)))

    sizes = list[tuple[int, ...]]()

    def seen(image: Float32) -> Float32:
        sizes.append(image.shape[2:])
        return mean(image)

    np.testing.assert_allclose(encode_in_tiles(seen, images, TileRecord(sides=(8, 6), overlap=2), 2), mean(images), atol=1e-6)
    assert set(sizes) == {(16, 12)}


def test_shares_rise_linearly_where_tiles_overlap() -> None:
    values = iter([1.0, 5.0, 2.0, 6.0])  # of the four tiles: upper row, lower row

    def constant(_tile: Float32) -> Float32:
        return np.full((1, 1, 8, 8), next(values), dtype=np.float32)

    image = decode_in_tiles(constant, np.zeros((1, 1, 6, 6), dtype=np.float32), TileRecord(sides=(4, 4), overlap=2))[0, 0]
    share = np.concatenate([np.zeros(4), np.arange(4) / 4, np.ones(4)])
    np.testing.assert_allclose(image, 1 + 4 * share[None] + share[:, None], atol=1e-6)


@pytest.mark.parametrize(("sides", "overlap"), [((8, 8), 8), ((8, 4), 5), ((8, 8), 0), ((8,), 2)])
def test_impossible_tiles_are_refused(sides: tuple[int, ...], overlap: int) -> None:
    with pytest.raises(ValidationError):
        DecoderRecord.model_validate({"file": "d", "image_shape": [3, 64, 64], "batch": 1, "tile": {"sides": sides, "overlap": overlap}})
