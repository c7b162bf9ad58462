"""Run one half of the proof of a decoder's memory in its own process.

`write NAME FOLDER` writes the graph of a first stage of published size with random weights. `decode FOLDER BATCH` decodes images with the
graph, and prints the width of the images, the seconds that decoding took, and the peak memory in GB.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np

GRAPH = "decoder.onnx"
SHAPES = {"vq-f4": (3, 64, 64), "kl-f8": (4, 64, 64)}
"""Shapes of the latents: those of LDM-4 for images of 256 x 256, and of Stable Diffusion 1.5 for images of 512 x 512."""


def write(name: str, folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, VQModel

    from calib.quantizers.rules.placement import PLACEMENTS
    from ptqd_export.graph.graph_files import save_graph
    from ptqd_export.graph.trace import lower, trace_decoder
    from ptqd_export.models.diffusers_models.diffusers_decoder import KlDecoder, VqDecoder

    torch.manual_seed(0)
    levels = 3 if name == "vq-f4" else 4
    shared = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (128, 256, 512, 512)[:levels],
        "layers_per_block": 2,
        "latent_channels": SHAPES[name][0],
    }
    decoder = VqDecoder(VQModel(num_vq_embeddings=8192, **shared), 1.0) if name == "vq-f4" else KlDecoder(AutoencoderKL(**shared), 0.18215)
    graph = trace_decoder(decoder, SHAPES[name])
    lower(graph, PLACEMENTS["onnxruntime"])
    save_graph(graph, folder / GRAPH)


def decode(folder: Path, batch: int) -> None:
    """Decode images as `ptqd-run sample` does, on two threads."""
    from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
    from engines.networks.image_decoder import Decoder

    engine = OnnxRuntimeBackend(threads=2).open(folder / GRAPH, batch)
    states = np.random.default_rng(0).standard_normal((batch, *engine.inputs[0].shape), dtype=np.float32)
    begin = time.monotonic()
    images = Decoder(engine, batch)(states)
    assert np.isfinite(images).all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sys.stdout.write(f"{images.shape[-1]} {time.monotonic() - begin} {peak}\n")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], Path(sys.argv[3]))
    else:
        decode(Path(sys.argv[2]), int(sys.argv[3]))
