"""Every transformer that takes prompts: `init`, a build, and samples of prompts without PyTorch, against the pipeline itself."""

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
from engines.cli import main as run
from ptqd_export.cli import main as export
from ptqd_export.models.diffusers_models.transformers import family_table
from tests.ptqd_export.models.text import tiny_decoders, tiny_t5
from tests.ptqd_export.models.text.prompt_checks import NEGATIVE, pipeline
from tests.ptqd_export.models.tiny_transformers import PRECISIONS, TINY
from tests.ptqd_export.models.whole_pipelines import called

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")]

STEPS, SEED = 3, 5
PROMPTS = ("the DOG of caf\u00e9, \u732b!", "word " * 600, "")
LAYERS = (1, 3, 2)
"""Layers that are read in place of FLUX.2's, whose encoders have up to 40."""

T5 = ("pixart-sigma", "pixart-alpha", "sd3", "flux-dev", "flux-schnell", "chroma")
T5_SIZE = (16, 16)
NEGATIVES = ("pixart-sigma", "pixart-alpha", "sd3", "chroma", "qwen-image", "auraflow", "sana", "z-image")
"""Families whose pipelines take a negative prompt."""

BINNED = {"use_resolution_binning": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "pixart-sigma": BINNED, "pixart-alpha": BINNED, "sana": BINNED, "flux-schnell": {"max_sequence_length": 256},
    "flux2-dev": {"text_encoder_out_layers": LAYERS}, "flux2-klein": {"text_encoder_out_layers": LAYERS},
}  # fmt: skip
"""What the pipelines are told beside prompts and guidance."""


@pytest.mark.parametrize("family", [*T5, *tiny_decoders.PARTS])
def test_a_chain_of_prompts_ends_where_the_pipeline_does(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_table, "KLEIN_LAYERS", LAYERS)
    monkeypatch.setattr(family_table, "DEV_LAYERS", LAYERS)
    folder = tiny_t5.WRITE[family](tmp_path) if family in T5 else tiny_decoders.write_with_text(family, tmp_path)
    guidance = _build(folder, T5_SIZE if family in T5 else TINY[family].size)
    bundle = Bundle.open(tmp_path / "bundle")
    found = {precision: _sampled(bundle, precision, family in NEGATIVES) for precision in ("fp32", *PRECISIONS)}
    start = NoiseSource(SEED, bundle.manifest.model.sample_shape).start(np.arange(len(PROMPTS)))
    expected = _of_pipeline(family, folder, start, guidance, "latent")
    exact = found["fp32"]["samples"]
    np.testing.assert_allclose(exact, expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(exact - start).max() > 0.1
    for precision in PRECISIONS:
        assert 1e-4 < np.abs(found[precision]["samples"] - exact).mean() / np.abs(exact).mean() < 0.3
    assert (bundle.manifest.model.decoder is not None) == (family != "flux2-dev")
    if bundle.manifest.model.decoder is not None:
        images = _of_pipeline(family, folder, start, guidance, "np")
        assert images.std() > 0.02
        np.testing.assert_allclose(found["fp32"]["images"] / 255, images, atol=0.5 / 255 + 1e-3)


def _build(folder: Path, size: tuple[int, int] | None) -> float:
    """Build what `init` writes, in a few steps and calibrated with few samples; return its guidance."""
    assert size is not None
    path = folder.parent / "plan.json"
    _done(export, ["init", "--model", str(folder), "--target", "onnxruntime", "--size", f"{size[0]}x{size[1]}", "-o", str(path)])
    plan = json.loads(path.read_text())
    assert plan["precisions"] == list(PRECISIONS)
    plan["sampler"]["steps"] = STEPS
    plan["calibration"] |= {"samples": 4, "batch_size": 4, "activation_samples": 8}
    plan["target"] |= {"threads": 1, "benchmark_batch": 2}
    path.write_text(json.dumps({**plan, "reuse": {"cuts": []}, "output": "bundle"}))
    _done(export, ["build", "--plan", str(path)])
    return float(plan["sampler"]["guidance"])


def _sampled(bundle: Bundle, precision: str, negative: bool) -> dict[str, Any]:
    output = bundle.folder.parent / precision
    options = ["--num", str(len(PROMPTS)), "--seed", str(SEED), *(f"--prompt={prompt}" for prompt in PROMPTS)]
    options += ["--negative-prompt", NEGATIVE] if negative else []
    told = _done(run, ["sample", str(bundle.folder), *options, "--precision", precision, "--format", "npz", "--output", str(output)])
    assert "cut off because they were too long: prompts 1;" in told
    with np.load(output / "samples.npz") as arrays:
        return dict(arrays)


def _of_pipeline(family: str, folder: Path, start: Any, guidance: float, kind: str) -> Any:
    pipe = pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    scale = {"qwen-image": {"true_cfg_scale": guidance}, "z-image": {"guidance_scale": guidance - 1}}
    options = {"prompt": list(PROMPTS), **scale.get(family, {"guidance_scale": guidance}), **OPTIONS.get(family, {}), "output_type": kind}
    if family in NEGATIVES:
        options["negative_prompt"] = [NEGATIVE] * len(PROMPTS)
    with torch.no_grad():
        return np.asarray(called(pipe, family, torch.from_numpy(start), STEPS, options))


def _done(command: Any, arguments: list[str]) -> str:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    return str(done.output)
