"""A bundle in the pipelines of transformers gives what their own network and scheduler give, and what the run time gives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.errors import UsageError
from engines.networks.chain_choice import ChainChoice
from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler, use_bundle
from ptqd_export.schedules.add_schedule import add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from tests.ptqd_export.models.tiny_transformers import PIPED, SLOW, USUAL
from tests.ptqd_export.models.whole_pipelines import EMBEDDED, arguments, open_pipeline, walked

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built

# diffusers turns tensors into arrays in a way that NumPy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SAMPLES, ROWS, STEPS = np.array([4, 0]), np.array([2, 0]), 4
FITTED = {name: guidance for name, (_, _, guidance) in USUAL.items()}
"""Guidance of each bundle: true guidance, none, and that of FLUX.1 dev, which is an input."""

GUIDED = ("pixart-sigma", "pixart-alpha", "sd3", "chroma", "flux2-klein", "qwen-image", "auraflow", "sana", "z-image")


@dataclass(frozen=True)
class Model:
    """A family's folder, the conditions beside it, and its bundle."""

    folder: Path
    conditions: Path
    bundle: Path


@pytest.fixture(scope="module")
def models(transformer_folder: Callable[[str], Path], transformer_build: Callable[[str], Built]) -> Callable[[str], Model]:
    def model(name: str) -> Model:
        folder = transformer_folder(name)
        return Model(folder, folder.parent / "conditions.npz", transformer_build(name).folder)

    return model


def families(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


def pipeline(name: str, model: Model, **parts: Any) -> Any:
    return open_pipeline(name, model.folder, **parts)


def noise_of(model: Model) -> NoiseSource:
    return NoiseSource(11, Bundle.open(model.bundle).manifest.model.sample_shape)


def called(pipe: Any, name: str, model: Model, guidance: float | None = None, **options: Any) -> Tensor:
    """Latents [N, C, h, w] of a pipeline from the run time's noise and the bundle's prepared embeddings."""
    start = torch.from_numpy(noise_of(model).start(SAMPLES)).to(options.pop("dtype", torch.float32))
    scale = FITTED[name] if guidance is None else guidance
    steps, noise = options.pop("num_inference_steps", STEPS), noise_of(model)
    fresh = (torch.from_numpy(noise.step(step, SAMPLES)) for step in range(steps))
    with ExitStack() as patched:
        for place in ("diffusers.schedulers.scheduling_scm", "ptqd_export.diffusers.scheduler"):
            patched.enter_context(patch(f"{place}.randn_tensor", lambda *_, **__: next(fresh)))
        latents: Tensor = walked(pipe, name, start, ROWS, steps, scale, **options)
    return latents


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("name", families(*PIPED))
def test_full_precision_is_the_pipeline_itself(name: str, models: Callable[[str], Model]) -> None:
    model = models(name)
    pipe = pipeline(name, model)
    own, scheduler, expected = pipe.transformer, pipe.scheduler, called(pipe, name, model)
    close(called(use_bundle(pipe, model.bundle, precision="fp32"), name, model), expected, 1e-3)
    pipe.transformer, pipe.scheduler = own, scheduler
    assert torch.equal(called(pipe, name, model), expected), "without the bundle, the pipeline is as it was"


@pytest.mark.parametrize("name", families(*PIPED))
def test_quantized_and_corrected_chains_are_those_of_the_run_time(name: str, models: Callable[[str], Model]) -> None:
    model = models(name)
    pipe = use_bundle(pipeline(name, model), model.bundle)
    expected = torch.from_numpy(ChainChoice().open(Bundle.open(model.bundle), len(SAMPLES)).sample(noise_of(model), SAMPLES, ROWS))
    close(called(pipe, name, model), expected, 1e-5)
    close(called(pipe, name, model), expected, 1e-5)


@pytest.mark.parametrize("name", families(*GUIDED))
def test_guidance_can_be_off_if_that_is_accepted(name: str, models: Callable[[str], Model]) -> None:
    model = models(name)
    with pytest.raises(UsageError, match=f"another guidance scale[^|]*found: +guidance 1\n +expected: {FITTED[name]:g}, "):
        called(use_bundle(pipeline(name, model), model.bundle), name, model, guidance=1.0)
    found = called(use_bundle(pipeline(name, model), model.bundle, accept_guidance=True), name, model, guidance=1.0)
    chain = ChainChoice(guidance=1.0, accept_guidance=True).open(Bundle.open(model.bundle), len(SAMPLES))
    close(found, torch.from_numpy(chain.sample(noise_of(model), SAMPLES, ROWS)), 1e-5)


def test_the_guidance_of_flux_is_that_of_the_call(models: Callable[[str], Model]) -> None:
    model, name = models("flux-dev"), "flux-dev"
    with pytest.raises(UsageError, match=r"another guidance scale[^|]*found: +guidance 5\n +expected: 3.5, "):
        called(use_bundle(pipeline(name, model), model.bundle), name, model, guidance=5.0)
    pipe = pipeline(name, model)
    expected = called(pipe, name, model, guidance=5.0)
    close(called(use_bundle(pipe, model.bundle, precision="fp32", accept_guidance=True), name, model, guidance=5.0), expected, 1e-3)


def test_flux_in_half_precision_finds_its_steps(models: Callable[[str], Model]) -> None:
    """Its pipeline rounds timesteps to the type of the latents, and divides them by 1000."""
    model, name = models("flux-dev"), "flux-dev"
    exact = called(use_bundle(pipeline(name, model), model.bundle), name, model)
    pipe = use_bundle(pipeline(name, model).to(torch.bfloat16), model.bundle)
    close(called(pipe, name, model, dtype=torch.bfloat16).float(), exact, 0.05)


@pytest.mark.slow
def test_sana_sprint_in_two_steps_has_the_angles_of_its_pipeline(models: Callable[[str], Model], tmp_path: Path) -> None:
    model, name = models("sana-sprint"), "sana-sprint"
    bundle, options = shutil.copytree(model.bundle, tmp_path / "bundle"), {"num_inference_steps": 2}
    add_schedule(bundle, "two", ScheduleRequest(steps=2, guidance=1.0))
    pipe = pipeline(name, model)
    expected = called(pipe, name, model, **options)
    use_bundle(pipe, bundle, schedule="two", precision="fp32")
    close(called(pipe, name, model, **options), expected, 1e-3)
    for other in ({"intermediate_timesteps": 1.1}, {"max_timesteps": 1.5}, {"intermediate_timesteps": None}):
        with pytest.raises(UsageError, match=r"other angles[^|]*expected: 1\.571, 1\.3"):
            called(pipe, name, model, **options, **other)
    with pytest.raises(UsageError, match=r"another guidance scale[^|]*found: +guidance 3\n +expected: 4.5, "):
        called(pipe, name, model, guidance=3.0, **options)


def test_a_second_call_a_step_is_the_other_branch(models: Callable[[str], Model]) -> None:
    """As in FLUX with `true_cfg_scale`; the bundle was fitted without."""
    model, name = models("flux-dev"), "flux-dev"
    pipe = pipeline(name, model)
    given = arguments(name, model.conditions, ROWS, FITTED[name])
    null = {f"negative_{key}": value.flip(0) for key, value in given.items() if key.endswith("embeds")}
    expected = called(pipe, name, model, true_cfg_scale=2.0, **null)
    with pytest.raises(UsageError, match=r"another guidance scale[^|]*found: +guidance 2\n +expected: 1, "):
        called(use_bundle(pipe, model.bundle, precision="fp32"), name, model, true_cfg_scale=2.0, **null)
    found = called(use_bundle(pipe, model.bundle, precision="fp32", accept_guidance=True), name, model, true_cfg_scale=2.0, **null)
    close(found, expected, 1e-3)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "steps": ("flux-dev", {"num_inference_steps": 5}, "num_inference_steps=5\n +expected: 4"),
    "sigmas": ("flux-dev", {"sigmas": [1.0, 0.9, 0.5, 0.1]}, "other noise levels.*sigmas=1, 0.9, 0.5, 0.1\n +expected: no sigmas"),
    "turned": (
        "flux-dev",
        {"height": 12, "width": 16},
        r"at other places.*up to \[0.0, 2.0, 3.0\]\n +expected: +positions up to \[0.0, 3.0, 2.0\]",
    ),
    "size": (
        "flux-dev",
        {"height": 32, "width": 32, "latents": None},
        "another shape.*found: +samples of shape.*call the pipeline with the height",
    ),
    "prompt": ("flux-dev", {"prompt_embeds": torch.zeros(2, 7, 12)}, r"another size.*\[7, 12\] for one sample\n +expected: \[5, 12\]"),
    "LoRA": ("flux-dev", {"joint_attention_kwargs": {"scale": 0.5}}, "cannot honour joint_attention_kwargs"),
    "levels": ("pixart-sigma", {"sigmas": [1.0, 0.9, 0.5, 0.1]}, "other noise levels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_bundle_cannot_do_is_refused(case: str, models: Callable[[str], Model]) -> None:
    name, options, message = REFUSED[case]
    pipe = use_bundle(pipeline(name, models(name)), models(name).bundle)
    with pytest.raises(UsageError, match=re.compile(message, re.DOTALL)):
        called(pipe, name, models(name), **options)


def test_a_bundle_of_another_family_is_refused(models: Callable[[str], Model]) -> None:
    pipe = pipeline("pixart-sigma", models("pixart-sigma"))
    own = pipe.transformer
    with pytest.raises(UsageError, match=r"a bundle of diffusers FluxTransformer2DModel with [^|]*class FluxTransformer2DModel"):
        use_bundle(pipe, models("flux-dev").bundle)
    assert pipe.transformer is own


@pytest.mark.parametrize("name", families("flux-dev", "sd3", "sana"))
def test_the_parts_are_given_to_from_pretrained(name: str, models: Callable[[str], Model]) -> None:
    model = models(name)
    denoiser = PtqdDenoiser.from_bundle(model.bundle)
    pipe = pipeline(name, model, transformer=denoiser, scheduler=PtqdScheduler.from_bundle(model.bundle, watched=denoiser))
    assert pipe.transformer is denoiser
    close(called(pipe, name, model), called(use_bundle(pipeline(name, model), model.bundle), name, model), 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPED)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_twenty_steps_of_another_schedule(name: str, guidance: float, models: Callable[[str], Model], tmp_path: Path) -> None:
    model = models(name)
    bundle, embedded = shutil.copytree(model.bundle, tmp_path / "bundle"), name in EMBEDDED
    add_schedule(bundle, "long", ScheduleRequest(steps=20, guidance=1.0 if embedded else guidance))
    pipe, options = pipeline(name, model), {"num_inference_steps": 20, "guidance": FITTED[name] if embedded else guidance}
    expected = called(pipe, name, model, **options)
    close(called(use_bundle(pipe, bundle, schedule="long", precision="fp32"), name, model, **options), expected, 1e-3)
