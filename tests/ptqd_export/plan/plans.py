"""Valid and invalid plans, and the error messages for the invalid ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import UsageError
from ptqd_export.plan import load_plan

SHORTEST = {
    "model": {"path": "tools/digits/model"},
    "sampler": {"name": "ddim", "steps": 20, "eta": 1.0, "guidance": 1.5},
    "precisions": ["w8a8", "w4a8"],
    "correction": {"mode": "auto", "variance": "schedule"},
    "steps": {"policy": "snr"},
    "target": {"name": "onnxruntime"},
    "output": "build/digits",
}


RESOLVED = """\
{
  "comments": [],
  "model": {
    "path": "tools/digits/model",
    "factory": null,
    "onnx": null,
    "graph": null,
    "null_class": null,
    "conditions": null,
    "prompts": null,
    "negative_prompt": null,
    "size": null,
    "sizes": [],
    "encoder": false,
    "decoder_tile": "auto",
    "preview": null,
    "lora": null,
    "control": null,
    "inpaint": null
  },
  "sampler": {
    "name": "ddim",
    "steps": 20,
    "eta": 1.0,
    "guidance": 1.5,
    "timestep_spacing": null,
    "clip_sample": null,
    "prediction_type": null,
    "use_karras_sigmas": null,
    "use_exponential_sigmas": null,
    "use_beta_sigmas": null,
    "timesteps": null,
    "sigmas": null
  },
  "precisions": [
    "w8a8",
    "w4a8"
  ],
  "quantization": {
    "weight_scale": "mse",
    "weight_group": null,
    "activation_scale": "mse",
    "rounding": "nearest",
    "adapters": null,
    "reconstruction": {
      "samples": 256,
      "iterations": 500,
      "batch_size": 16,
      "activation_scales": true,
      "memory_gib": 4.0
    },
    "attention": "float",
    "split_concatenations": false,
    "low_rank": null,
    "channel_scaling": null,
    "rotation": "none",
    "activation_steps": "all",
    "step_groups": 1,
    "keep_float": [],
    "keep_8bit_weights": [],
    "float_share": 0.0,
    "keep_float_encoders": false,
    "integer_layers": "all"
  },
  "calibration": {
    "samples": 512,
    "batch_size": 64,
    "activation_samples": 256,
    "seed": 0,
    "trajectory": "quantized",
    "verify_states": 64,
    "device": "cpu",
    "dtype": "float32"
  },
  "correction": {
    "mode": "auto",
    "parts": [
      "gain",
      "offset"
    ],
    "variance": "schedule"
  },
  "reuse": {
    "cuts": []
  },
  "steps": {
    "policy": "snr",
    "precisions": null,
    "cost": "bit_operations",
    "reuse": null,
    "budget": null
  },
  "target": {
    "name": "onnxruntime",
    "provider": "CPU",
    "threads": null,
    "benchmark_batch": 8,
    "high_precision": "fp32",
    "batch": null,
    "measure": null,
    "workspace_gib": null
  },
  "output": "build/digits"
}
"""


REFUSED = [
    ({"model": {}}, "model: found {}, expected one of path, factory, onnx"),
    ({"model": {"path": "m", "factory": "m:f"}}, 'model: found {"path": "m", "factory": "m:f"}, expected one of path, factory, onnx'),
    ({"model": {"onnx": "m.onnx"}}, 'model: found {"onnx": "m.onnx"}, expected "onnx" together with "graph"'),
    ({"model": {"factory": "net.py"}}, 'model.factory: found "net.py", expected "package.module:function"'),
    ({"model": {"path": ""}}, 'model.path: found "", expected a string that is not empty'),
    ({"model": {"path": "m", "null_class": -1}}, "model.null_class: found -1, expected 0 or more"),
    ({"model": {"path": "m", "null_clas": 3}}, 'model.null_clas: unknown key; did you mean "null_class"?'),
    ({"sampler": {"name": "ddim"}}, "sampler.steps: missing; expected the number of denoising steps"),
    ({"sampler": {"name": "ddim", "steps": 0}}, "sampler.steps: found 0, expected 1 or more"),
    ({"sampler": {"name": "ddim", "steps": "20"}}, 'sampler.steps: found "20", expected a whole number'),
    ({"sampler": {"name": "ddim", "steps": 9, "eta": 1.5}}, "sampler.eta: found 1.5, expected 1.0 or less"),
    ({"sampler": {"name": "ddim", "steps": 9, "guidance": -1}}, "sampler.guidance: found -1, expected 0.0 or more"),
    (
        {"sampler": {"name": "ddim", "steps": 9, "timestep_spacing": "even"}},
        "sampler.timestep_spacing: found \"even\", expected 'leading', 'trailing' or 'linspace'",
    ),
    ({"sampler": {"name": "ddim", "steps": 9, "clip_sample": 1}}, "sampler.clip_sample: found 1, expected true or false"),
    (
        {"sampler": {"name": "ddim", "steps": 9, "prediction_type": "v"}},
        "sampler.prediction_type: found \"v\", expected 'epsilon', 'v_prediction', 'sample' or 'flow'",
    ),
    ({"precisions": []}, "precisions: found [], expected at least 1 item"),
    ({"precisions": ["w8a8", "w8a8"]}, 'precisions: found ["w8a8", "w8a8"], expected names that are all different'),
    (
        {"precisions": ["w8a8", "w4a9"]},
        'precisions[1]: found "w4a9", expected w2 to w8 followed by a4 to a8 or a16 (float activations), such as w4a8; '
        'or fp8, mxfp8, nvfp4, nvfp4a8, fp16 or fp32; did you mean "w4a8"?',
    ),
    ({"precisions": "w8a8"}, 'precisions: found "w8a8", expected a list'),
    ({"quantization": {"weight_scale": "mean"}}, "quantization.weight_scale: found \"mean\", expected 'mse' or 'max'"),
    ({"quantization": {"weight_group": 48}}, "quantization.weight_group: found 48, expected 32, 64 or 128"),
    ({"quantization": {"low_rank": 0}}, "quantization.low_rank: found 0, expected 1 or more"),
    ({"quantization": {"attention": "fp16"}}, "quantization.attention: found \"fp16\", expected 'float', 'fp8' or 'int8'"),
    ({"quantization": {"keep_float": "mid"}}, 'quantization.keep_float: found "mid", expected a list'),
    ({"calibration": {"samples": 0}}, "calibration.samples: found 0, expected 1 or more"),
    ({"calibration": {"batch_size": 2.5}}, "calibration.batch_size: found 2.5, expected a whole number"),
    ({"calibration": {"trajectory": "fp32"}}, "calibration.trajectory: found \"fp32\", expected 'quantized' or 'fp'; did you mean \"fp\"?"),
    ({"correction": {"vairance": "schedule"}}, 'correction.vairance: unknown key; did you mean "variance"?'),
    (
        {"correction": {"mode": "sined"}},
        "correction.mode: found \"sined\", expected 'auto', 'none', 'ptqd', 'signed', 'bounded', 'joint' or 'mmse'; "
        'did you mean "signed"?',
    ),
    ({"steps": {"policy": "cost"}}, "steps.policy: found \"cost\", expected 'snr', 'budget' or 'fixed'"),
    ({"steps": {"policy": "snr", "reuse": {"every": 1}}}, "steps.reuse.every: found 1, expected 2 or more"),
    ({"steps": {"policy": "budget", "budget": 0}}, "steps.budget: found 0, expected more than 0.0"),
    ({"quantization": {"rounding": "learned"}}, "quantization.rounding: found \"learned\", expected 'nearest', 'layer' or 'block'"),
    ({"quantization": {"channel_scaling": 2.0}}, "quantization.channel_scaling: found 2.0, expected 1.0 or less"),
    ({"calibration": {"device": "gpu"}}, 'calibration.device: found "gpu", expected "cpu", "cuda", "cuda:0" or "mps"'),
    ({"correction": {"parts": ["gain", "gain"]}}, 'correction.parts: found ["gain", "gain"], expected names that are all different'),
    ({"target": {}}, "target.name: missing; expected the runtime"),
    (
        {"target": {"name": "TensorRT"}},
        "target.name: found \"TensorRT\", expected 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'; did you mean \"tensorrt\"?",
    ),
    (
        {"target": {"name": "tensorrt", "high_precision": "tf32"}},
        "target.high_precision: found \"tf32\", expected 'fp32', 'fp16' or 'bf16'; did you mean \"fp32\"?",
    ),
    ({"target": {"name": "tensorrt", "workspace_gib": 0}}, "target.workspace_gib: found 0, expected more than 0.0"),
    ({"target": {"name": "tensorrt", "batch": {"most": 2}}}, "target.batch.most: unknown key; known keys: min, opt, max"),
    (
        {"target": {"name": "onnxruntime", "provider": "cpu"}},
        "target.provider: found \"cpu\", expected 'CPU' or 'CUDA'; did you mean \"CPU\"?",
    ),
    ({"target": {"name": "onnxruntime", "threads": 0}}, "target.threads: found 0, expected 1 or more"),
    ({"output": None}, "output: found null, expected a string"),
    ({"outputs": "x"}, 'outputs: unknown key; did you mean "output"?'),
]
"""Sections that make the shortest plan invalid, each with the expected message."""


Write = Callable[..., Path]


def problems(path: Path) -> list[str]:
    """Return the error message for an invalid plan, one line per key."""
    with pytest.raises(UsageError) as caught:
        load_plan(path)
    assert caught.value.exit_code == 2
    heading, *lines, mend = str(caught.value).split("\n")
    assert heading == f"{path} is not a valid plan"
    assert "`ptqd-export schema`" in mend
    return [line.removeprefix("  ") for line in lines]
