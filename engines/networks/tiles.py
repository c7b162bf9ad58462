"""Decode a large state, or encode a large image, in overlapping tiles, so that memory goes to a tile, and blend where tiles overlap.

The method is that of `enable_tiling` in diffusers, but every tile has the full size: the last one is moved back into the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engines.arrays import Float32
from engines.bundle.first_stage_record import TileRecord


def decode_in_tiles(decode: Callable[[Float32], Float32], states: Float32, tile: TileRecord) -> Float32:
    """Return the images [N, C', H f, W f] of states [N, C, H, W].

    Args:
        decode: returns the images [N, C', h f, w f] of tiles [N, C, h, w], for a whole factor f.
        states: final states.
        tile: sides [h, w] of a tile, at most [H, W], and the least overlap.
    """
    return _in_tiles(decode, states, tile, 1)


def encode_in_tiles(encode: Callable[[Float32], Float32], images: Float32, tile: TileRecord, factor: int) -> Float32:
    """Return the states [N, C, H, W] of images [N, C', H f, W f].

    Args:
        encode: returns the states [N, C, h, w] of tiles [N, C', h f, w f].
        images: pictures.
        tile: sides [h, w] of a tile in elements of the state, at most [H, W], and the least overlap.
        factor: pixels of a side for each element of the state, f.
    """
    return _in_tiles(encode, images, tile, factor)


def _in_tiles(run: Callable[[Float32], Float32], x: Float32, tile: TileRecord, factor: int) -> Float32:
    """Run parts of x [N, C, H f, W f] and join what they give, for tiles of a state [H, W]."""
    height, width = tile.sides
    tops, lefts = (tile_places(side // factor, part, tile.overlap) for side, part in zip(x.shape[2:], tile.sides, strict=True))

    def part(top: int, left: int) -> Float32:
        return run(x[:, :, factor * top : factor * (top + height), factor * left : factor * (left + width)])

    rows = (blended((part(top, left) for left in lefts), lefts, width, axis=3) for top in tops)
    return blended(rows, tops, height, axis=2)


def tile_places(side: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side: as few as cover it, evenly spread, neighbours overlapping by at least `overlap`."""
    gaps = max(0, -(-(side - tile) // (tile - overlap)))
    return [0, *(gap * (side - tile) // gaps for gap in range(1, gaps + 1))]


def blended(pieces: Iterable[Float32], places: Sequence[int], tile: int, axis: int) -> Float32:
    """Join images along an axis; where two overlap, the share of the second rises linearly from 0.

    Args:
        pieces: images, one for each place.
        places: where their states begin, rising from 0.
        tile: length of the states.
        axis: axis of the height or the width.
    """
    whole, done = np.empty(0, dtype=np.float32), 0
    for place, piece in zip(places, pieces, strict=True):
        factor, part = piece.shape[axis] // tile, np.moveaxis(piece, axis, -1)
        if not whole.size:
            shape = list(piece.shape)
            shape[axis] = factor * (places[-1] + tile)
            whole = np.empty(shape, dtype=np.float32)
        joined, begin, end = np.moveaxis(whole, axis, -1), factor * place, factor * (place + tile)
        share = np.linspace(0, 1, done - begin, endpoint=False, dtype=np.float32)
        joined[..., begin:done] += share * (part[..., : done - begin] - joined[..., begin:done])
        joined[..., done:end] = part[..., done - begin :]
        done = end
    return whole
