"""From the folder of Stable Diffusion 3 to pictures of prompts: a build, and what `ptqd-run sample --prompt` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from engines.arrays import Float32
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.cli import main
from ptqd_export.commands.starter import PROMPTS as STARTER_PROMPTS
from ptqd_export.commands.starter import starter_plan
from ptqd_export.diffusers import use_bundle
from ptqd_export.plan import PlanFile, load_plan
from ptqd_export.stages.run_build import run_build
from tests.ptqd_export.models.text import tiny_t5

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

STEPS, GUIDANCE, SEED = 3, 5.0, 5
PROMPTS, NEGATIVE = ("the DOG of caf\u00e9, \u732b!", "word " * 300, ""), "the word"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> PlanFile:
    folder = tmp_path_factory.mktemp("sd3")
    tiny_t5.write_sd3(folder)
    plan = {
        "model": {"path": "model", "prompts": ["a photo of the red cat", "watercolour"], "negative_prompt": NEGATIVE},
        "sampler": {"name": "flow-euler", "steps": STEPS, "guidance": GUIDANCE},
        "precisions": ["w8a8"],
        "calibration": {"samples": 4, "batch_size": 4, "activation_samples": 8},
        "target": {"name": "onnxruntime", "threads": 1, "benchmark_batch": 2},
        "output": "bundle",
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    plan_file = load_plan(folder / "plan.json")
    run_build(plan_file)
    return plan_file


@pytest.mark.slow
def test_a_chain_of_prompts_ends_at_the_images_of_the_pipeline(built: PlanFile, tmp_path: Path) -> None:
    options = ["--num", "3", "--seed", str(SEED), "--negative-prompt", NEGATIVE, *(f"--prompt={prompt}" for prompt in PROMPTS)]
    for precision in ("fp32", "w8a8"):
        output = ("--precision", precision, "--format", "npz", "--output", str(tmp_path / precision))
        done = CliRunner().invoke(main, ["sample", str(built.output_path), *options, *output])
        assert done.exit_code == 0, done.output
        assert "cut off because they were too long: prompts 1;" in done.output
    found, quantized = (dict(np.load(tmp_path / precision / "samples.npz")) for precision in ("fp32", "w8a8"))
    begin = _start(built)
    latents, images = (_of_pipeline(_pipeline(built), begin, kind) for kind in ("latent", "np"))
    np.testing.assert_allclose(found["samples"], latents, atol=1e-3)
    np.testing.assert_allclose(found["images"] / 255, np.moveaxis(images, -1, 1), atol=0.5 / 255 + 1e-3)
    assert np.abs(latents - begin).max() > 0.1
    assert 0 < np.abs(quantized["samples"] - latents).max() < 0.2 * np.abs(latents).max()


@pytest.mark.slow
def test_a_bundle_in_the_pipeline_takes_its_prompts(built: PlanFile) -> None:
    pipe, begin = _pipeline(built), _start(built)
    expected = _of_pipeline(pipe, begin, "np")
    found = _of_pipeline(use_bundle(pipe, built.output_path, precision="fp32"), begin, "np")
    assert expected.std() > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-3)


def _start(built: PlanFile) -> Float32:
    return NoiseSource(SEED, Bundle.open(built.output_path).manifest.model.sample_shape).start(np.arange(3))


def _pipeline(built: PlanFile) -> Any:
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(built.model_path, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _of_pipeline(pipe: Any, begin: Float32, kind: str) -> NDArray[Any]:
    """Latents or images that a pipeline makes of the prompts, from a start of ours."""
    made = pipe(
        prompt=list(PROMPTS), negative_prompt=[NEGATIVE] * 3, latents=torch.from_numpy(begin), height=16, width=16,
        num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type=kind, return_dict=False,
    )  # fmt: skip
    return np.asarray(made[0])


def test_init_writes_prompts_and_the_guidance_of_the_family(tmp_path: Path) -> None:
    plan = starter_plan(tiny_t5.write_sd3(tmp_path), "onnxruntime", tmp_path)
    assert (plan.model.prompts, plan.sampler.guidance, plan.model.conditions) == (STARTER_PROMPTS, 7.0, None)


def test_init_says_that_captions_are_not_cleaned(tmp_path: Path) -> None:
    plan = starter_plan(tiny_t5.write_pixart(tmp_path), "onnxruntime", tmp_path)
    assert plan.model.prompts == STARTER_PROMPTS
    assert any("prompts are not cleaned of links" in comment for comment in plan.comments)
