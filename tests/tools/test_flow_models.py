"""The committed flow transformer and its student: diffusers and this project read them, and they draw what a prompt says."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import PixArtAlphaPipeline
from safetensors.torch import load_file

from ptqd_export.commands.starter import starter_plan
from ptqd_export.models.load import load_model
from ptqd_export.plan import load_plan
from tools.flow import distil, network
from tools.flow.distil import shares, walked
from tools.flow.network import STUDENT, TEACHER, PromptedFlow, load_network
from tools.flow.train import GUIDANCE, flow_loss
from tools.flow.words import COLOURS, DIGITS, LONGEST, UNNAMED, colour_of, every_prompt, number_of, prompt, tokenizer
from tools.training.recognise import recognised

HERE = Path(network.__file__).parent
FOLDERS = pytest.mark.parametrize("folder", [TEACHER, STUDENT], ids=["teacher", "student"])
# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def test_both_folders_are_small_hold_no_pickles_and_half_precision() -> None:
    files = [path for folder in (TEACHER, STUDENT) for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 8e6
    weights = [load_file(path) for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 6
    assert {tensor.dtype for part in weights for tensor in part.values()} == {torch.float16}


@pytest.mark.parametrize(("folder", "steps", "guidance"), [(TEACHER, 20, GUIDANCE), (STUDENT, 4, 1.0), (STUDENT, 2, 1.0)])
def test_samples_of_diffusers_show_digit_and_colour(folder: Path, steps: int, guidance: float) -> None:
    pipeline = PixArtAlphaPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    digits, grounds = np.arange(30) % len(DIGITS), np.arange(30) % len(COLOURS)
    asked = [prompt(int(digit), UNNAMED, int(ground)) for digit, ground in zip(digits, grounds, strict=True)]
    images = pipeline(
        asked, negative_prompt="", num_inference_steps=steps, guidance_scale=guidance, height=32, width=32, output_type="np",
        generator=torch.Generator().manual_seed(0), use_resolution_binning=False, clean_caption=False,
    ).images.transpose(0, 3, 1, 2)  # fmt: skip
    assert recognised(2 * images.astype(np.float32) - 1, digits) >= 0.9
    corner = torch.from_numpy(images[:, :, :3, :3].mean(axis=(2, 3)))
    assert (colour_of(corner).numpy() == grounds).mean() >= 0.8


@pytest.mark.parametrize(("plan", "folder"), [("plan.json", TEACHER), ("student.json", STUDENT)])
def test_a_bundle_s_network_is_the_trained_one(plan: str, folder: Path) -> None:
    """The plan's prompts, padded to PixArt's 120 tokens, give the flow of the network that was trained with 8."""
    written = load_plan(HERE / plan)
    model = load_model(written)
    assert model.conditioning is not None
    prompts = (HERE / "prompts.txt").read_text().splitlines()
    tables = [torch.from_numpy(table) for table in model.conditioning.tables.values()]
    assert tables[0].shape == (len(prompts), 120, network.TEXT_WIDTH)
    torch.manual_seed(0)
    x, sigma = torch.randn(len(prompts), 4, 8, 8), torch.rand(len(prompts))
    numbers = torch.tensor([every_prompt().index(one) for one in prompts])
    with torch.no_grad():
        torch.testing.assert_close(model.adapter(x, 1000 * sigma, *tables), load_network(folder)(x, sigma, numbers), atol=1e-4, rtol=1e-4)


@FOLDERS
def test_init_knows_which_of_them_takes_few_steps(folder: Path, tmp_path: Path) -> None:
    plan = starter_plan(folder, "onnxruntime", tmp_path)
    expected = ("dpm++2m", 20, 4.5) if folder == TEACHER else ("dpm++1", 4, 1.0)
    assert (plan.sampler.name, plan.sampler.steps, plan.sampler.guidance) == expected
    assert any("distilled for few steps" in comment for comment in plan.comments) == (folder == STUDENT)


@pytest.mark.parametrize("plan", ["plan.json", "student.json"])
def test_first_prompts_show_the_digits_in_order(plan: str) -> None:
    """`tools.quality` asks row n for the digit n."""
    prompts = load_plan(HERE / plan).plan.model.prompts
    assert prompts == "prompts.txt"
    assert all(digit in line.split() for digit, line in zip(DIGITS, (HERE / prompts).read_text().splitlines(), strict=False))


@pytest.mark.parametrize(("log", "least"), [("training_log.json", {20: 0.95}), ("student_log.json", {20: 0.95, 8: 0.95, 4: 0.95, 2: 0.9})])
def test_training_logs_hold_the_figures_of_the_trainings(log: str, least: dict[int, float]) -> None:
    found = json.loads((HERE / log).read_text())
    losses = [row["loss"] for row in found["log"]]
    assert losses[-1] < losses[0]
    assert found["steps"] == found["log"][-1]["step"]
    assert all(share <= found[f"recognised_in_{steps}"] <= 1 for steps, share in least.items())


def test_every_prompt_has_its_number_and_only_known_words() -> None:
    choices = range(UNNAMED + 1)
    numbers = [int(number_of(*map(torch.tensor, chosen))) for chosen in itertools.product(range(len(DIGITS)), choices, choices)]
    assert numbers == list(range(len(numbers)))
    assert every_prompt() == [prompt(*chosen) for chosen in itertools.product(range(len(DIGITS)), choices, choices)] + [""]
    assert prompt(7, 0, 4) == "a red seven on blue"
    assert prompt(7, UNNAMED, UNNAMED) == "a seven"
    made = tokenizer()
    assert all(made.unk_token_id not in ids and len(ids) <= LONGEST for ids in made(every_prompt()).input_ids)
    assert made.unk_token_id in made("a cat").input_ids


def test_hues_have_their_names() -> None:
    pure = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1.0]])
    for colours in (pure, 0.2 + 0.3 * pure, 2 * pure - 1, pure + 0.3 * pure.roll(1, dims=1)):
        assert colour_of(colours).tolist() == list(range(len(COLOURS)))


class TwoPoints(torch.nn.Module):
    """The exact flow of data that is one number: 1 for the empty prompt, and 3 for any other."""

    ids = torch.zeros(len(every_prompt()), 1)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        clean = torch.where(prompts == len(every_prompt()) - 1, 1.0, 3.0)
        out: torch.Tensor = (x - clean[:, None, None, None]) / sigma[:, None, None, None]
        return out


def test_pairs_end_where_guidance_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guided flow of two points leads to the point `1 + guidance (3 - 1)` from any noise; of the empty prompt to 1."""
    torch.manual_seed(0)
    monkeypatch.setattr(distil, "PIECE", 700)
    pairs = walked(cast(PromptedFlow, TwoPoints()), 3000)
    empty = pairs.prompts == len(every_prompt()) - 1
    assert empty.any()
    ends = torch.where(empty, 1.0, 1 + GUIDANCE * 2)[:, None, None, None].expand(3000, 4, 8, 8)
    torch.testing.assert_close(pairs.clean, ends, atol=0.01, rtol=0)  # diffusers gives the network whole timesteps
    assert pairs.noise.std().item() == pytest.approx(1, abs=0.02)


def test_loss_is_that_of_the_straight_line_between_the_ends() -> None:
    torch.manual_seed(0)
    clean, noise, sigma = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8), shares(6)

    def straight(x: torch.Tensor, given: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        share = given.double().numpy()[:, None, None, None]
        np.testing.assert_allclose(x, (1 - share) * clean.numpy() + share * noise.numpy(), atol=1e-5)
        return noise - clean + 0.5 * prompts[:, None, None, None]

    model: Any = straight
    assert flow_loss(model, clean, noise, sigma, torch.zeros(6)).item() == pytest.approx(0, abs=1e-10)
    assert flow_loss(model, clean, noise, sigma, torch.ones(6)).item() == pytest.approx(0.25)


def test_half_of_the_shares_are_levels_of_short_chains() -> None:
    torch.manual_seed(0)
    drawn = shares(20_000)
    assert 0 < drawn.min() <= drawn.max() <= 1
    for level in (0.25, 0.5, 0.75, 1.0):
        assert (drawn == level).float().mean().item() == pytest.approx(1 / 8, abs=0.01)
