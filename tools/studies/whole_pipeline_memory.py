"""Measure the peak memory from a prompt to a PNG file: a bundle of Stable Diffusion 1.5's shape, and diffusers' float32 pipeline.

    python -m tools.studies.whole_pipeline_memory build/whole-pipeline

The pipeline has random weights: a U-Net of 860 million parameters, the text encoder of CLIP ViT-L/14, and the first stage. Its bundle is
built with the quickest settings. Both then draw one picture of 512 x 512 pixels with guidance, each in a process of its own on two threads.
Own memory is anonymous; resident memory has the pages of mapped files too, which the system may drop at any time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tools.bench.memory import memory_mib

if TYPE_CHECKING:
    from transformers import CLIPTextModel

MODEL, BUNDLE, PICTURES = "model", "bundle", "pictures"
PROMPT, STEPS, GUIDANCE, THREADS = "a lighthouse at dusk, oil on canvas", 1, 7.5, 2
START, END, TOKENS = "<|startoftext|>", "<|endoftext|>", 77
SECONDS = 0.02
"""Time between two readings of the memory."""


def write_pipeline(folder: Path) -> None:
    """Write a pipeline in the format of `save_pretrained`, in float32."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTokenizerFast

    torch.manual_seed(0)
    (folder / MODEL).mkdir(parents=True)
    _write_tokenizer(folder / MODEL / "tokenizer")
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, sample_size=512,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
        ),
        text_encoder=_text_encoder(),
        tokenizer=CLIPTokenizerFast.from_pretrained(folder / MODEL / "tokenizer"),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / MODEL)  # fmt: skip


def _text_encoder() -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    ends = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ends))


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes; the text encoder has rows for CLIP's whole vocabulary all the same."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *map(chr, range(256, 256 + 256 - len(printable)))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    files: Mapping[str, object] = {
        "vocab.json": {name: number for number, name in enumerate(names)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **special},
        "special_tokens_map.json": special,
    }
    folder.mkdir()
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def build(folder: Path) -> None:
    """Build the bundle: the search for scales and corrections takes time, and changes nothing about the memory of sampling."""
    from ptqd_export.plan import load_plan
    from ptqd_export.stages.run_build import run_build

    (folder / "prompts.txt").write_text(f"{PROMPT}\n")
    plan = {
        "model": {"path": MODEL, "prompts": "prompts.txt"},
        "sampler": {"name": "ddim", "steps": STEPS, "guidance": GUIDANCE},
        "precisions": ["w8a8"],
        "steps": {"policy": "fixed", "precisions": ["w8a8"]},
        "calibration": {"samples": 2, "batch_size": 1, "activation_samples": 1, "verify_states": 1},
        "quantization": {"weight_scale": "max", "activation_scale": "max"},
        "correction": {"mode": "none"},
        "target": {"name": "onnxruntime", "threads": THREADS, "benchmark_batch": 1},
        "output": BUNDLE,
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    run_build(load_plan(folder / "plan.json"))


def sample_bundle(folder: Path) -> None:
    from engines.apps.sample.sample_command import SampleRequest
    from engines.apps.sample.sample_command import sample_bundle as sample

    sample(SampleRequest(folder / BUNDLE, folder / PICTURES, 1, 1, batch_size=1, prompts=(PROMPT,), overwrite=True))


def sample_pipeline(folder: Path) -> None:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.set_num_threads(THREADS)
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder / MODEL, use_safetensors=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE).images[0].save(folder / "diffusers.png")


SAMPLED: Mapping[str, Callable[[Path], None]] = {"bundle": sample_bundle, "diffusers": sample_pipeline}


def measure(sampled: Callable[[Path], None], folder: Path) -> None:
    """Sample, and print a row: peaks of own and resident memory in GB, and seconds."""
    own, begin = [0.0], time.monotonic()

    def read() -> None:
        while True:
            own[0] = max(own[0], memory_mib("RssAnon"))
            time.sleep(SECONDS)

    threading.Thread(target=read, daemon=True).start()
    sampled(folder)
    gigabytes = (value * 2**20 / 1e9 for value in (own[0], memory_mib("VmHWM")))
    click.echo(" | ".join([*(f"{value:.2f}" for value in gigabytes), f"{time.monotonic() - begin:.0f}"]))


def _in_a_process(folder: Path, step: str) -> str:
    command = [sys.executable, "-m", "tools.studies.whole_pipeline_memory", str(folder), "--step", step]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--step", type=click.Choice(["write", "build", *SAMPLED]), hidden=True)
def main(folder: Path, step: str | None) -> None:
    """Print the peaks of both, after the pipeline and the bundle are made; a folder that has them is used again."""
    if step is not None:
        if step in SAMPLED:
            measure(SAMPLED[step], folder)
        else:
            (write_pipeline if step == "write" else build)(folder)
            click.echo("done")
        return
    if not (folder / MODEL / "model_index.json").exists():
        _in_a_process(folder, "write")
    if not (folder / BUNDLE).exists():
        _in_a_process(folder, "build")
    click.echo("| from a prompt to a PNG | own memory, GB | resident memory, GB | seconds |\n|---|---:|---:|---:|")
    for name in SAMPLED:
        click.echo(f"| {name} | {_in_a_process(folder, name)} |")


if __name__ == "__main__":
    main()
