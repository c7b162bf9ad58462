"""Measure what decoding in tiles changes: pictures of coloured digits, through the trained first stage of `tools/latent`.

    python -m tools.studies.decoder_seams --across 4 --tile 32 --tile 64 --tile 96
    python -m tools.studies.decoder_seams --across 1 --tile 16 --tile 24

A picture has `across` digits along each side, of 32 x 32 pixels each. It is encoded, and decoded whole and in tiles that overlap by a
quarter. A step is the change of the difference between the two from one pixel to the next, in levels of 0 to 255; on an edge of a tile it
would be seen as a seam. `shared statistics` gives group normalization the mean and variance of the whole state in every tile, which leaves
what the convolutions miss behind the edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import click
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from engines.arrays import Float32
from engines.bundle.first_stage_record import TileRecord
from engines.networks.tiles import decode_in_tiles, tile_places
from tools.coloured.data import SIZE, coloured
from tools.digits.data import split
from tools.latent.first_stage import encode, load_first_stage

FACTOR, PICTURES, OVERLAPS, LEVELS = 4, 16, 4, 127.5

Statistics: TypeAlias = dict[nn.Module, tuple[Tensor, Tensor]]


def pictures(across: int) -> Tensor:
    """Return pictures [16, 3, across x 32, across x 32] of held-out digits."""
    _, held_out = split()
    digits = coloured(PICTURES * across**2, torch.Generator().manual_seed(0), held_out).images
    return digits.reshape(PICTURES, across, across, 3, SIZE, SIZE).permute(0, 3, 1, 4, 2, 5).reshape(PICTURES, 3, across * SIZE, -1)


def groups(module: nn.GroupNorm, values: Tensor) -> Tensor:
    """Return the values [N, groups, values of a group]."""
    return values.reshape(len(values), module.num_groups, -1)


@contextmanager
def with_statistics(decoder: nn.Module, whole: Callable[[], object]) -> Iterator[None]:
    """Have the decoder's group normalizations use the mean and variance that they have while `whole` runs."""
    found: Statistics = {}
    norms = [module for module in decoder.modules() if isinstance(module, nn.GroupNorm)]

    def keep(module: nn.GroupNorm, given: tuple[Tensor], _result: Tensor) -> None:
        values = groups(module, given[0])
        found[module] = values.mean(-1, keepdim=True), values.var(-1, keepdim=True, unbiased=False)

    def normalize(module: nn.GroupNorm, given: tuple[Tensor], _result: Tensor) -> Tensor:
        mean, variance = found[module]
        normal = (groups(module, given[0]) - mean) / (variance + module.eps).sqrt()
        return normal.reshape(given[0].shape) * module.weight[:, None, None] + module.bias[:, None, None]

    with _hooks(norms, keep):
        whole()
    with _hooks(norms, normalize):
        yield


@contextmanager
def _hooks(modules: list[nn.GroupNorm], hook: Callable[..., Tensor | None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def psnr(found: Float32, expected: Float32) -> float:
    """Return the pooled PSNR of images in [-1, 1], in dB."""
    return 10 * float(np.log10(4 / np.square(found.clip(-1, 1) - expected.clip(-1, 1)).mean()))


def steps(difference: Float32, tile: TileRecord) -> tuple[float, float]:
    """Return the mean step of a difference [N, 3, H, W] across the edges of tiles, and elsewhere."""
    length = difference.shape[-1]
    places = tile_places(length // FACTOR, tile.sides[0], tile.overlap)
    edges = {FACTOR * one for place in places for one in (place, place + tile.sides[0])} - {0, length}
    at_edges = np.isin(np.arange(1, length), list(edges))
    moved = np.stack([np.abs(np.diff(difference, axis=2)).swapaxes(2, 3), np.abs(np.diff(difference, axis=3))]) * LEVELS
    return float(moved[..., at_edges].mean()), float(moved[..., ~at_edges].mean())


@click.command()
@click.option("--tile", "tiles", type=int, multiple=True, required=True, help="Side of a tile in pixels. Repeat the option for several.")
@click.option("--across", type=int, default=4, show_default=True, help="Digits along each side of a picture.")
@torch.no_grad()
def main(tiles: tuple[int, ...], across: int) -> None:
    """Print PSNR and steps for each side of the tiles."""
    stage: AutoencoderKL = load_first_stage()
    torch.manual_seed(0)
    originals = pictures(across)
    latents = encode(stage, originals).numpy()

    def decode(states: Float32) -> Float32:
        return np.asarray(stage.decode(torch.from_numpy(np.ascontiguousarray(states)) / stage.config.scaling_factor).sample.numpy())

    whole = decode(latents)
    click.echo(f"whole, to the originals: {psnr(whole, originals.numpy()):.1f} dB")
    for side in tiles:
        record = TileRecord(sides=(side // FACTOR,) * 2, overlap=max(1, side // FACTOR // OVERLAPS))
        tiled = decode_in_tiles(decode, latents, record)
        with with_statistics(stage.decoder, lambda: decode(latents)):
            shared = decode_in_tiles(decode, latents, record)
        for name, images in (("own statistics", tiled), ("shared statistics", shared)):
            seam, elsewhere = steps(images - whole, record)
            to_whole, to_originals = psnr(images, whole), psnr(images, originals.numpy())
            click.echo(
                f"tiles of {side}, {name}: {to_whole:.1f} dB to whole, {to_originals:.1f} dB to the originals; mean difference "
                f"{np.abs(images - whole).mean() * LEVELS:.2f} levels; steps at edges {seam:.2f}, elsewhere {elsewhere:.2f}"
            )


if __name__ == "__main__":
    main()
