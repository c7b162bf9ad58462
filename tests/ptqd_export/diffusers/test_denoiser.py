"""The denoiser on its own: what it feeds, what pipelines read of it, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from engines.errors import BundleError, PtqdError, UsageError
from ptqd_export.diffusers import PtqdDenoiser

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 3])


@pytest.fixture(scope="module")
def denoiser(tiny: TinyBundle) -> PtqdDenoiser:
    return PtqdDenoiser.from_bundle(tiny.folder)


@pytest.mark.parametrize(("timestep", "precision"), [(750, "w4a8"), (500, "w4a8"), (250, "w8a8"), (0, "fp32")])
def test_the_timestep_picks_the_engine(tiny: TinyBundle, denoiser: PtqdDenoiser, timestep: int, precision: str) -> None:
    expected = tiny.networks[precision](X.numpy(), timestep, LABELS.numpy())
    for given in (timestep, float(timestep), torch.tensor(timestep), torch.tensor([timestep] * 2)):
        found = denoiser(X, given, class_labels=LABELS).sample
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_one_precision_takes_every_step(tiny: TinyBundle) -> None:
    found = PtqdDenoiser.from_bundle(tiny.folder, precision="fp32")(X, 750, class_labels=LABELS, return_dict=False)[0]
    np.testing.assert_allclose(found, tiny.networks["fp32"](X.numpy(), 750, LABELS.numpy()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_output_has_the_type_of_the_sample(denoiser: PtqdDenoiser, dtype: torch.dtype) -> None:
    exact = denoiser(X, 750, class_labels=LABELS).sample
    found = denoiser(X.to(dtype), 750, class_labels=LABELS).sample
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.1)


def test_it_goes_where_it_is_sent(tiny: TinyBundle) -> None:
    denoiser = PtqdDenoiser.from_bundle(tiny.folder)
    assert (denoiser.dtype, denoiser.device.type) == (torch.float32, "cpu")
    assert denoiser.half().dtype == torch.float16
    assert denoiser.to("meta").device.type == "meta"
    assert list(denoiser.parameters()) == []


def test_pipelines_find_the_configuration(tiny: TinyBundle, tiny_latent: TinyBundle) -> None:
    config = PtqdDenoiser.from_bundle(tiny.folder).config
    assert (config.sample_size, config.in_channels, config.out_channels, config.num_class_embeds) == (8, 1, 1, 4)
    assert config.time_cond_proj_dim is None
    tiny_latent.edit_json("manifest.json", lambda manifest: manifest["model"].update(sample_shape=[4, 8, 16]))
    assert PtqdDenoiser.from_bundle(tiny_latent.folder).config.sample_size == (8, 16)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "timestep": (
        {"timestep": 600},
        r"does not visit.*timestep 600\n +expected: one of 750, 500, 250, 0\n.*num_inference_steps=4",
    ),
    "timesteps": ({"timestep": torch.tensor([750, 500])}, "at different timesteps"),
    "shape": ({"sample": X[:, :, :4]}, r"another shape.*\[1, 4, 8\].*expected: \[1, 8, 8\]"),
    "missing": ({"class_labels": None}, "conditions are not those that the network.*found: +none\n +expected: class_labels"),
    "unknown": ({"encoder_hidden_states": X}, "conditions are not those that the network.*found: +encoder_hidden_states, class_labels\n"),
    "label": ({"class_labels": torch.tensor([2, 4])}, "class label.*found: +4\n +expected: 0 to 2, and 3 for no class"),
    "ControlNet": ({"mid_block_additional_residual": X}, "cannot honour mid_block_additional_residual.*type Tensor"),
    "attention": ({"cross_attention_kwargs": {"scale": 1.0}}, "cannot honour cross_attention_kwargs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_engines_cannot_do_is_refused(denoiser: PtqdDenoiser, case: str) -> None:
    changed, message = REFUSED[case]
    arguments = {"sample": X, "timestep": 750, "class_labels": LABELS} | changed
    with pytest.raises(UsageError, match=re.compile(message, re.DOTALL)):
        denoiser(**arguments)


def test_arguments_that_say_nothing_are_not_refused(denoiser: PtqdDenoiser) -> None:
    denoiser(X, 750, class_labels=LABELS, timestep_cond=None, cross_attention_kwargs={}, added_cond_kwargs=None)


def test_a_batch_of_labels_must_fit(denoiser: PtqdDenoiser) -> None:
    with pytest.raises(PtqdError, match="Input class_labels"):
        denoiser(X, 750, class_labels=LABELS[:1])


def test_a_timestep_of_two_precisions_is_refused(own_tiny: TinyBundle) -> None:
    own_tiny.edit_json("schedules/default.json", lambda schedule: schedule["steps"][2].update(timestep=500.0))
    own_tiny.rehash("schedules/default.json")
    with pytest.raises(UsageError, match=re.compile("twice.*timestep 500: w4a8, then w8a8", re.DOTALL)):
        PtqdDenoiser.from_bundle(own_tiny.folder)
    PtqdDenoiser.from_bundle(own_tiny.folder, precision="w8a8")


def test_what_is_missing_or_damaged_is_told_at_once(own_tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        PtqdDenoiser.from_bundle(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no such schedule"):
        PtqdDenoiser.from_bundle(own_tiny.folder, schedule="other")
    with pytest.raises(UsageError, match="no such precision"):
        PtqdDenoiser.from_bundle(own_tiny.folder, precision="w2a2")
    own_tiny.edit("graphs/onnxruntime/w8a8.onnx", lambda content: content[:-1])
    with pytest.raises(BundleError, match="changed or damaged"):
        PtqdDenoiser.from_bundle(own_tiny.folder)


def test_it_is_not_saved_as_if_it_were_a_network(denoiser: PtqdDenoiser, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        denoiser.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
