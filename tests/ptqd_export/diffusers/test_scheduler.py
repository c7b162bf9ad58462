"""The scheduler on its own, on a schedule whose numbers the tests set: one pixel by hand, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from engines.errors import UsageError
from engines.samplers import NoiseSchedule
from ptqd_export.diffusers import PtqdDenoiser, PtqdScheduler, use_bundle

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

TIMESTEPS = [750, 500, 250, 0]
SHAPE = (2, 1, 8, 8)
Z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def with_steps(own_tiny: TinyBundle) -> Callable[..., PtqdScheduler]:
    """A scheduler whose schedule and steps were changed."""

    def change(*, steps: list[dict[str, Any]] | None = None, options: dict[str, Any] | None = None, **of_schedule: Any) -> PtqdScheduler:
        def edit(schedule: dict[str, Any]) -> None:
            schedule.update(of_schedule)
            for step, changed in zip(schedule["steps"], steps or [], strict=False):
                step.update(changed)

        own_tiny.edit_json("schedules/default.json", edit)
        own_tiny.rehash("schedules/default.json")
        scheduler = PtqdScheduler.from_bundle(own_tiny.folder, **(options or {}))
        scheduler.set_timesteps(scheduler.num_inference_steps)
        return scheduler

    return change


def full(value: float) -> Tensor:
    return torch.full(SHAPE, value)


def test_a_step_is_correction_then_update_then_calibrated_noise(with_steps: Callable[..., PtqdScheduler]) -> None:
    correction = {
        "gain": [1.5], "offset": [0.25], "state_gain": [0.5], "sigma_corrected": 0.75, "residual_variance": 0.0, "unabsorbed_variance": 0.0,
    }  # fmt: skip
    plain = {"x_coeff": 2.0, "out_coeff": -3.0, "sigma": 1.0, "precision": "w8a8"}
    corrections = dict.fromkeys(("fp32", "w4a8", "w8a8"), correction)
    scheduler = with_steps(steps=[{**plain, "corrections": corrections}])
    found = scheduler.step(full(0.5), 750, full(1.0), variance_noise=Z)[0]
    torch.testing.assert_close(found, 2 - 3 * (1.5 * 0.5 + 0.25 + 0.5) + 0.75 * Z)
    uncorrected = with_steps(options={"correction": "off"})
    torch.testing.assert_close(uncorrected.step(full(0.5), 750, full(1.0), variance_noise=Z)[0], 2 - 3 * 0.5 + Z)


def test_history_is_kept_and_begins_anew_with_every_chain(with_steps: Callable[..., PtqdScheduler]) -> None:
    step = {"x_coeff": 0.0, "out_coeff": 0.0, "prediction_coeffs": [1.0, 2.0], "history_coeffs": [3.0, 5.0], "sigma": 0.0}
    scheduler = with_steps(steps=[step] * 4, options={"correction": "off"})
    for _ in range(2):
        scheduler.set_timesteps(4)
        first = scheduler.step(full(0.5), 750, full(1.0))[0]
        torch.testing.assert_close(first, full(3 * (1 + 2 * 0.5)))
        second = scheduler.step(full(0.25), 500, full(4.0))[0]
        torch.testing.assert_close(second, full(3 * (4 + 2 * 0.25) + 5 * 2))


def test_fresh_noise_is_the_generators(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler, generator = with_steps(), torch.Generator().manual_seed(3)
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    mean = scheduler.step(full(0.5), 750, full(1.0), variance_noise=full(0.0), return_dict=False)[0]
    scheduler.set_timesteps(4)
    found = scheduler.step(full(0.5), 750, full(1.0), generator=generator)[0]
    noise = found - mean
    torch.testing.assert_close(noise / noise.std(), expected / expected.std())


def test_states_are_scaled_for_the_network(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps(steps=[{"input_scale": 0.25}] * 4, init_sigma=14.5)
    with pytest.raises(UsageError, match=re.compile("does not scale states by scale_model_input.*not used by timestep 750", re.DOTALL)):
        scheduler.step(full(0.0), 750, full(1.0))
    scheduler.scale_model_input(full(1.0), 750)
    with pytest.raises(UsageError, match="does not scale states by init_noise_sigma"):
        scheduler.step(full(0.0), 750, full(1.0))
    assert scheduler.init_noise_sigma == 14.5
    torch.testing.assert_close(scheduler.scale_model_input(full(1.0), torch.tensor(750)), full(0.25))
    scheduler.step(full(0.0), 750, full(1.0))
    with pytest.raises(UsageError, match="by scale_model_input"):
        scheduler.step(full(0.0), 500, full(1.0))


def test_half_precision_is_computed_in_float32(with_steps: Callable[..., PtqdScheduler]) -> None:
    generator = torch.Generator().manual_seed(0)
    out, x = torch.randn(SHAPE, generator=generator).half(), torch.randn(SHAPE, generator=generator).half()
    scheduler = with_steps()
    exact = scheduler.step(out.float(), 750, x.float(), variance_noise=Z)[0]
    scheduler.set_timesteps(4)
    found = scheduler.step(out, 750, x, variance_noise=Z)[0]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, exact.half(), rtol=0, atol=0)


def test_pipelines_find_what_they_read(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps()
    assert scheduler.timesteps.tolist() == TIMESTEPS
    assert scheduler.timesteps.dtype == torch.int64
    assert (scheduler.order, scheduler.init_noise_sigma, len(scheduler), scheduler.num_inference_steps) == (1, 1.0, 1000, 4)
    assert (scheduler.step_index, scheduler.begin_index) == (None, None)
    assert scheduler.config.prediction_type == "epsilon"
    plain = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert not plain.config.clip_sample


def test_shifted_steps_have_their_own_timesteps(with_steps: Callable[..., PtqdScheduler]) -> None:
    shift = {"timestep": 751.5, "input_scale": 1.0, "x_coeff": 7.0, "out_coeff": 0.0, "prediction_coeffs": [0.0, 0.0]}
    scheduler = with_steps(steps=[{"shifted": shift}])
    assert scheduler.timesteps.tolist() == [751.5, 500, 250, 0]
    torch.testing.assert_close(scheduler.step(full(0.5), scheduler.timesteps[0], full(1.0), variance_noise=full(0.0))[0], full(7.0))


def test_the_denoiser_knows_shifted_and_plain_timesteps(with_steps: Callable[..., PtqdScheduler], own_tiny: TinyBundle) -> None:
    shift = {"timestep": 751.3, "input_scale": 1.0, "x_coeff": 7.0, "out_coeff": 0.0, "prediction_coeffs": [0.0, 0.0]}
    scheduler, labels = with_steps(steps=[{"shifted": shift}]), torch.tensor([0, 1])
    denoiser = PtqdDenoiser.from_bundle(own_tiny.folder)
    expected = own_tiny.networks["w4a8"](Z.numpy(), 751.3, labels.numpy())
    np.testing.assert_allclose(denoiser(Z, scheduler.timesteps[0], class_labels=labels).sample, expected, rtol=0, atol=1e-5)
    assert not torch.equal(denoiser(Z, 750, class_labels=labels).sample, denoiser(Z, scheduler.timesteps[0], class_labels=labels).sample)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_noise_is_added_to_images_as_diffusers_does(with_steps: Callable[..., PtqdScheduler], scale: float) -> None:
    scheduler = with_steps(steps=[{"input_scale": scale}] * 4)
    reference = diffusers.DDIMScheduler(clip_sample=False)
    timesteps = torch.tensor([500, 250])
    expected = reference.add_noise(full(0.5), Z, timesteps)
    torch.testing.assert_close(scheduler.add_noise(full(0.5), Z, timesteps) * scale, expected, rtol=0, atol=1e-5)


def test_a_chain_may_start_at_a_later_step(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps()
    scheduler.set_begin_index(2)
    scheduler.step(full(0.5), 250, full(1.0))
    assert scheduler.step_index == 3
    scheduler.set_timesteps(4)
    scheduler.step(full(0.5), 500, full(1.0))
    assert scheduler.step_index == 2


def test_a_timestep_may_come_twice_in_a_row(with_steps: Callable[..., PtqdScheduler]) -> None:
    """As in PLMS, whose first step is taken twice: one more than the sampler counts."""
    steps = [{"timestep": 750.0, "x_coeff": float(i), "out_coeff": 0.0, "sigma": 0.0} for i in (2, 3)]
    scheduler = with_steps(steps=steps, options={"correction": "off"}, sampler={"name": "plms", "steps": 3, "eta": 0.0, "guidance": 1.5})
    assert scheduler.num_inference_steps == 3
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [750, 750, 250, 0]
    torch.testing.assert_close(scheduler.step(full(0.5), 750, full(1.0))[0], full(2.0))
    torch.testing.assert_close(scheduler.step(full(0.5), 750, full(1.0))[0], full(3.0))
    assert scheduler.step_index == 2


@pytest.mark.parametrize("calls", [1, 2])
def test_the_branches_of_guidance_come_in_one_call_or_in_two(tiny: TinyBundle, calls: int) -> None:
    denoiser, labels = PtqdDenoiser.from_bundle(tiny.folder), torch.tensor([0, 1, 3, 3])
    scheduler = PtqdScheduler.from_bundle(tiny.folder, watched=denoiser)
    for scale in (1.5, 2.0):
        scheduler.set_timesteps(4)
        batches = torch.cat([Z, Z]).chunk(calls), labels.chunk(calls)
        outputs = [denoiser(x, 750, class_labels=of).sample for x, of in zip(*batches, strict=True)]
        conditional, unconditional = torch.cat(outputs).chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        if scale == 1.5:
            scheduler.step(guided, 750, Z, variance_noise=Z)
            continue
        with pytest.raises(UsageError, match=r"found: +guidance 2\n +expected: 1.5, "):
            scheduler.step(guided, 750, Z, variance_noise=Z)


# Refused


def test_a_sampler_that_looks_back_cannot_begin_later(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps(steps=[{}, {"history_coeffs": [1.0, 0.0]}, {"history_coeffs": [1.0, 0.5]}, {}])
    with pytest.raises(UsageError, match="ddim, begun at step 1, which needs"):
        scheduler.step(full(0.5), 500, full(1.0))
    scheduler.set_timesteps(4)
    scheduler.step(full(0.5), 0, full(1.0))


def test_another_number_of_steps_is_refused(with_steps: Callable[..., PtqdScheduler]) -> None:
    with pytest.raises(UsageError, match=re.compile("num_inference_steps=50\n +expected: 4\n.*--steps N", re.DOTALL)):
        with_steps().set_timesteps(50)


def test_steps_out_of_order_are_refused(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps()
    with pytest.raises(UsageError, match="does not visit this timestep"):
        scheduler.step(full(0.5), 600, full(1.0))
    for index, timestep in enumerate(TIMESTEPS):
        scheduler.scale_model_input(full(1.0), timestep)
        with pytest.raises(UsageError, match=rf"in order.\n +found: +timestep 123\n +expected: step {index}, timestep {timestep}\n"):
            scheduler.step(full(0.5), 123, full(1.0))
        scheduler.step(full(0.5), timestep, full(1.0))
    with pytest.raises(UsageError, match="set_timesteps before another chain"):
        scheduler.step(full(0.5), 0, full(1.0))


@pytest.mark.parametrize(("eta", "refused"), [(0.0, True), (0.5, True), (1.0, False), (None, False)])
def test_another_eta_is_refused(with_steps: Callable[..., PtqdScheduler], eta: float | None, refused: bool) -> None:
    scheduler = with_steps()
    if not refused:
        scheduler.step(full(0.5), 750, full(1.0), eta=eta)
        return
    with pytest.raises(UsageError, match=f"found: +eta={eta:g} .*\n +expected: 1\n +mend: +call the pipeline with eta=1"):
        scheduler.step(full(0.5), 750, full(1.0), eta=eta)


def test_samplers_without_eta_ignore_it(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps(sampler={"name": "ddpm", "steps": 4, "eta": 1.0, "guidance": 1.5})
    scheduler.step(full(0.5), 750, full(1.0), eta=0.0)


def test_clipped_outputs_are_refused(with_steps: Callable[..., PtqdScheduler]) -> None:
    scheduler = with_steps()
    with pytest.raises(UsageError, match="use_clipped_model_output=True"):
        scheduler.step(full(0.5), 750, full(1.0), use_clipped_model_output=True)
    scheduler.step(full(0.5), 750, full(1.0), use_clipped_model_output=False)


def test_a_shifted_chain_starts_from_no_image(with_steps: Callable[..., PtqdScheduler]) -> None:
    with pytest.raises(UsageError, match="cannot start from an image"):
        with_steps().add_noise(full(0.5), Z, torch.tensor([751.5, 751.5]))


def test_precisions_that_the_corrections_do_not_hold_for_are_refused(
    with_steps: Callable[..., PtqdScheduler], own_tiny: TinyBundle
) -> None:
    shift = {"timestep": 751.5, "input_scale": 1.0, "x_coeff": 1.0, "out_coeff": 0.0, "prediction_coeffs": [0.0, 0.0]}
    with_steps(steps=[{"shifted": shift}])
    with pytest.raises(UsageError, match=re.compile("precision w8a8.*which uses fp32, w4a8, w8a8.*turn the correction off", re.DOTALL)):
        PtqdScheduler.from_bundle(own_tiny.folder, precision="w8a8")
    PtqdScheduler.from_bundle(own_tiny.folder, precision="w8a8", correction="off")
    with pytest.raises(UsageError, match="no such precision"):
        PtqdScheduler.from_bundle(own_tiny.folder, precision="w2a2")


def test_the_watched_denoiser_has_the_same_precision(own_tiny: TinyBundle) -> None:
    denoiser = PtqdDenoiser.from_bundle(own_tiny.folder, precision="w8a8")
    with pytest.raises(UsageError, match='precision="auto" with a denoiser of precision="w8a8"'):
        PtqdScheduler.from_bundle(own_tiny.folder, watched=denoiser)
    PtqdScheduler.from_bundle(own_tiny.folder, precision="w8a8", watched=denoiser)


def test_it_is_not_saved_as_if_it_were_a_scheduler(with_steps: Callable[..., PtqdScheduler]) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        with_steps().save_pretrained("anywhere")


class NoNetwork:
    scheduler = None


def test_a_pipeline_without_a_network_is_refused(tiny: TinyBundle) -> None:
    with pytest.raises(UsageError, match=re.compile("found: +NoNetwork\n +expected: .*unet or a transformer", re.DOTALL)):
        use_bundle(NoNetwork(), tiny.folder)


def test_the_configuration_is_that_of_the_model(with_steps: Callable[..., PtqdScheduler]) -> None:
    assert dict(with_steps().config) == NoiseSchedule(clip_sample=False).model_dump()
