"""Measure the peak memory of decoding with the first stage of Stable Diffusion, of random weights: whole, and in tiles.

    python -m tools.studies.decoder_memory --size 512 --size 1024 --tile 512

Each row is a process of its own, which opens the graph as `ptqd-run` does on two threads of ONNX Runtime, and decodes one image.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from tools.bench.memory import memory_mib

GRAPH = "decoder.onnx"
FACTOR, CHANNELS, OVERLAPS = 8, 4, 4


def write(folder: Path, pixels: int) -> None:
    """Write the graph of a decoder whose images, or tiles, have sides of `pixels`."""
    import torch
    from diffusers import AutoencoderKL

    from calib.quantizers.rules.placement import PLACEMENTS
    from ptqd_export.graph.graph_files import save_graph
    from ptqd_export.graph.trace import lower, trace_decoder
    from ptqd_export.models.diffusers_models.diffusers_decoder import KlDecoder

    torch.manual_seed(0)
    stage = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=CHANNELS,
    )
    graph = trace_decoder(KlDecoder(stage, 0.18215), (CHANNELS, pixels // FACTOR, pixels // FACTOR))
    lower(graph, PLACEMENTS["onnxruntime"])
    save_graph(graph, folder / GRAPH)


def decode(folder: Path, pixels: int) -> None:
    """Decode an image of that size with the graph of the folder, and print the peak memory in GB and the seconds."""
    from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
    from engines.bundle.first_stage_record import TileRecord
    from engines.networks.image_decoder import Decoder

    engine = OnnxRuntimeBackend(threads=2).open(folder / GRAPH, 1)
    side = pixels // FACTOR
    taken = int(engine.inputs[0].shape[-1])
    tile = None if taken == side else TileRecord(sides=(taken, taken), overlap=taken // OVERLAPS)
    states = np.random.default_rng(0).standard_normal((1, CHANNELS, side, side), dtype=np.float32)
    begin = time.monotonic()
    Decoder(engine, 1, (3, pixels, pixels), tile)(states)
    seconds = time.monotonic() - begin
    click.echo(f"{memory_mib('VmHWM') * 2**20 / 1e9:.1f} GB, {seconds:.0f} s")


def _in_a_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.studies.decoder_memory", *arguments], check=False, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else f"ended with {done.returncode}"


@click.command()
@click.option("--size", "sizes", type=int, multiple=True, help="Side of the image in pixels. Repeat the option for several.")
@click.option("--tile", "tiles", type=int, multiple=True, help="Side of a tile in pixels. Repeat the option for several.")
@click.option("--whole/--no-whole", default=True, help="Decode whole images too.")
@click.option("--step", type=(click.Choice(["write", "decode"]), click.Path(path_type=Path)), hidden=True)
def main(sizes: tuple[int, ...], tiles: tuple[int, ...], step: tuple[str, Path] | None, *, whole: bool) -> None:
    """Print the peak memory of a process that decodes one image, whole and in tiles."""
    if step is not None:
        (write if step[0] == "write" else decode)(step[1], sizes[0])
        return
    for size in sizes:
        for taken in (*((size,) if whole else ()), *(tile for tile in tiles if tile < size)):
            with tempfile.TemporaryDirectory() as folder:
                _in_a_process("--step", "write", folder, "--size", str(taken))
                measured = _in_a_process("--step", "decode", folder, "--size", str(size))
            click.echo(f"{size} x {size}, {'whole' if taken == size else f'tiles of {taken}'}: {measured}")


if __name__ == "__main__":
    main()
