"""The assumptions of `tools.scale_model`, each with its unit and its source: measured here, a data sheet, or a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """A number that the estimate stands on."""

    value: float
    unit: str
    source: str


_H100 = "data sheet of an H100 SXM, without sparsity"

ASSUMPTIONS: Mapping[str, Assumption] = {
    "parameters": Assumption(12e9, "", "a transformer of FLUX.1's size"),
    "layers": Assumption(57, "", "FLUX.1: 19 double and 38 single blocks"),
    "width": Assumption(3072, "", "FLUX.1"),
    "image_side": Assumption(1024, "px", "asked for"),
    "pixels_a_token": Assumption(16, "px", "a latent is 8 times smaller, and a token has 2 x 2 of its values"),
    "text_tokens": Assumption(512, "", "FLUX.1's T5"),
    "latent_channels": Assumption(16, "", "FLUX.1"),
    "images": Assumption(50000, "", "asked for: the usual number for a Frechet distance"),
    "steps": Assumption(28, "", "FLUX.1 dev's pipeline"),
    "branches": Assumption(1, "", "guidance is an input of FLUX.1; 2 with classifier-free guidance"),
    "precisions": Assumption(2, "", "two quantized precisions beside full precision"),
    "budget": Assumption(1, "", "1 with the policy `budget`, 0 without: its probes"),
    "calibration_samples": Assumption(512, "", "default of the plan"),
    "activation_samples": Assumption(256, "", "default of the plan"),
    "batch": Assumption(8, "rows", "guess: what activations leave room for"),
    "quantized_tera_ops": Assumption(1979, "Tops/s", f"8 bits, {_H100}"),
    "measured_tera_ops": Assumption(
        67,
        "Tops/s",
        f"float32, in which PyTorch measures, and ONNX Runtime on the workers of a cluster; {_H100}. 1979 for the target's engines",
    ),
    "full_tera_ops": Assumption(67, "Tops/s", f"float32, {_H100}"),
    "utilisation": Assumption(0.4, "", "guess: large matrix products reach more, attention and norms less"),
    "memory_gb_a_second": Assumption(3350, "GB/s", _H100),
    "quantized_bytes_a_parameter": Assumption(1.01, "B", "engines of two products of 1024 x 1024 at W8A8, TensorRT-RTX (docs/tensorrt.md)"),
    "measured_bytes_a_parameter": Assumption(1.0, "B", "PyTorch keeps the integers on the device"),
    "full_bytes_a_parameter": Assumption(4.0, "B", "float32"),
    "activation_mb_a_row": Assumption(600, "MB", "guess"),
    "graph_seconds_a_billion": Assumption(
        194, "s", "trace, quantize, bundle and optimize of 2.47 B parameters took 16 minutes for two networks (docs/models.md)"
    ),
    "engine_seconds_a_billion": Assumption(60, "s", "guess: no engine of this size was built"),
    "disk_gb_a_second": Assumption(3, "GB/s", "as in docs/models.md"),
    "decoder_seconds": Assumption(0.1, "s", "guess, for an image of 1024 px"),
    "ray_start": Assumption(120, "s", "as in docs/cluster.md: start of Ray and opening of engines"),
    "unit_overhead": Assumption(0.05, "s", "guess, for a batch of pictures that a worker returns"),
    "step_overhead": Assumption(0.5, "s", "guess: all workers wait for each other at every step of the walk"),
    "gpus_a_machine": Assumption(8, "", "usual"),
    "picture_mb": Assumption(1.5, "MB", "guess, for a PNG of 1024 px"),
}
