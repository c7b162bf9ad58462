"""Measure how long a bundle takes to put a LoRA into its weights: the first step of a chain, with engines closed and open.

    python -m tools.studies.lora_switch build/bench/ddpm-36m/bundle --rank 16

The LoRA has random factors for every linear layer and convolution of the network.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import engines
from engines.bundle.bundle import Bundle
from engines.networks.lora.lora_changes import FloatWeights


def write_lora(bundle: Bundle, rank: int, path: Path) -> int:
    """Write a LoRA with small random factors of a bundle's layers, and return the number of layers."""
    from safetensors.numpy import save_file

    random, tensors = np.random.default_rng(0), {}
    shapes = FloatWeights.of(bundle).shapes
    for name, (out, *rest) in shapes.items():
        tensors[f"{name}.lora_A.weight"] = 0.02 * random.standard_normal((rank, *rest), dtype=np.float32)
        tensors[f"{name}.lora_B.weight"] = 0.02 * random.standard_normal((out, rank, *[1] * (len(rest) - 1)), dtype=np.float32)
    save_file(tensors, path)
    return len(shapes)


def first_step(bundle: engines.OpenBundle, **options: Any) -> float:
    """Return the seconds that the first step of a chain takes."""
    begin = time.perf_counter()
    next(bundle.chain(1, seed=1, **options))
    return time.perf_counter() - begin


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the LoRA.")
def main(folder: Path, rank: int) -> None:
    """Print the seconds of the first step for every precision of the bundle in FOLDER."""
    with tempfile.TemporaryDirectory() as temporary:
        lora = Path(temporary) / "lora.safetensors"
        layers = write_lora(Bundle.open(folder), rank, lora)
        click.echo(f"{layers} layers, rank {rank}, {lora.stat().st_size / 2**20:.1f} MiB")
        for precision in Bundle.open(folder).manifest.precisions:
            with engines.open_bundle(folder) as bundle:
                asked = [{}, {}, *({"loras": {lora: scale}} for scale in (0.5, 0.5, 0.8)), {}]
                seconds = [f"{first_step(bundle, precision=precision, **options):.2f} s" for options in asked]
            words = ("opened", "open", "with the LoRA", "again", "at another scale", "without it")
            click.echo(f"{precision}: {', '.join(f'{word} {time}' for word, time in zip(words, seconds, strict=True))}")


if __name__ == "__main__":
    main()
