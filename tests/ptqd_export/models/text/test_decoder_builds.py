"""From a folder whose prompts are read by a language model to latents of prompts, without PyTorch, against the pipeline itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.cli import main
from ptqd_export.plan import load_plan
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.models.text.prompt_checks import NEGATIVE, pipeline
from tests.ptqd_export.models.text.tiny_decoders import write_with_text

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")]

STEPS, GUIDANCE, SEED = 3, 3.0, 5
PROMPTS = ("the DOG of caf\u00e9, \u732b!", "word " * 600, "")
ASKED: dict[str, Any] = {
    "sana": {"sampler": "dpm++2m", "size": (192, 192), "guidance_scale": GUIDANCE, "use_resolution_binning": False},
    "z-image": {"sampler": "flow-euler", "size": (64, 96), "guidance_scale": GUIDANCE - 1},
}
"""The sampler, the size in pixels, and what the pipeline is told beside the prompts."""


@pytest.mark.parametrize("family", ASKED)
def test_a_chain_of_prompts_ends_at_the_latents_of_the_pipeline(family: str, tmp_path: Path) -> None:
    folder, asked = write_with_text(family, tmp_path), dict(ASKED[family])
    sampler, (height, width) = asked.pop("sampler"), asked.pop("size")
    plan = {
        "model": {"path": "model", "prompts": ["a photo of the red cat", "watercolour"], "size": [height, width]},
        "sampler": {"name": sampler, "steps": STEPS, "guidance": GUIDANCE},
        "precisions": ["w8a8"],
        "calibration": {"samples": 4, "batch_size": 4, "activation_samples": 8},
        "target": {"name": "onnxruntime", "threads": 1, "benchmark_batch": 2},
        "output": "bundle",
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    run_build(load_plan(tmp_path / "plan.json"))
    options = ["--num", "3", "--seed", str(SEED), "--negative-prompt", NEGATIVE, *(f"--prompt={prompt}" for prompt in PROMPTS)]
    done = CliRunner().invoke(
        main, ["sample", str(tmp_path / "bundle"), *options, "--precision", "fp32", "--format", "npz", "--output", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "cut off because they were too long: prompts 1;" in done.output
    found = np.load(tmp_path / "out" / "samples.npz")["samples"]
    begin = NoiseSource(SEED, Bundle.open(tmp_path / "bundle").manifest.model.sample_shape).start(np.arange(3))
    pipe = pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=list(PROMPTS), negative_prompt=[NEGATIVE] * 3, latents=torch.from_numpy(begin), height=height, width=width,
        num_inference_steps=STEPS, output_type="latent", return_dict=False, **asked,
    )[0]  # fmt: skip
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-3)
    assert np.abs(found - begin).max() > 0.1
