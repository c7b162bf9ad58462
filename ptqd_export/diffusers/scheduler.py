"""A replacement for a pipeline's scheduler that walks the corrected schedule of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from engines.arrays import Float32
from engines.bundle.bundle import DEFAULT, Bundle
from engines.chain.norm_guidance import NormGuidance
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.chain.step import ChainState, Move, advance, predicted_clean
from engines.errors import UsageError
from engines.networks.chain_choice import AUTO, check_precision
from engines.samplers import SAMPLERS
from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.diffusers.angles import states_of
from ptqd_export.diffusers.asked_levels import check_levels, check_mu, check_original_steps
from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.diffusers.guidance import check_embedded_guidance, check_guidance, check_norm_guidance
from ptqd_export.diffusers.pipeline_call import PipelineCall
from ptqd_export.diffusers.position import Position
from ptqd_export.diffusers.timesteps import AS_MANY

CLEAN_TOO = ("lcm", "scm")
"""Samplers whose pipelines take the clean sample too."""

Generators = torch.Generator | list[torch.Generator] | None


class PtqdScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped here
    """A diffusers scheduler that walks a bundle's schedule: the correction, then the sampler's step, then the calibrated noise.

    The arithmetic is that of `ptqd-run sample`, on the host in float32. States keep the dtype and device of the pipeline's states.

    Args:
        noise_schedule: noise schedule that the model was trained with; `config` shows it.
        schedule: schedule of the bundle.
        moves: one move for each step of the schedule.
        watched: denoiser whose output is guided, to refuse a guidance scale other than the fitted one; None trusts the pipeline.
        call: the pipeline's form of the states; None is that of the bundle.
    """

    config_name = "scheduler_config.json"
    order = 1

    def __init__(
        self,
        noise_schedule: NoiseSchedule,
        schedule: Schedule,
        moves: tuple[Move, ...],
        watched: PtqdDenoiser | None = None,
        call: PipelineCall | None = None,
    ) -> None:
        self._states = states_of(schedule, moves, noise_schedule.num_train_timesteps)
        self.register_to_config(**noise_schedule.model_dump(), **_shifts(noise_schedule), **self._states.config)
        self._noise_schedule = noise_schedule
        self._schedule = schedule
        self._moves = moves
        self._watched = watched
        self._call = call or PipelineCall(())
        self._position = Position(schedule, moves)
        self._scales = False
        self._scales_start = False
        self._history: Sequence[Float32] = ()
        self.timesteps = self._states.timesteps
        self.num_inference_steps = schedule.sampler.steps

    @classmethod
    def from_bundle(
        cls,
        path: str | PathLike[str],
        *,
        schedule: str = DEFAULT,
        precision: str = AUTO,
        correction: Literal["on", "off"] = "on",
        watched: PtqdDenoiser | None = None,
    ) -> PtqdScheduler:
        """Return a scheduler for a schedule of a bundle.

        Args:
            path: folder of the bundle.
            schedule: name of the schedule.
            precision: precision of the denoiser.
            correction: `off` gives the plain sampler.
            watched: see the class.

        Raises:
            UsageError: there is no such bundle, schedule or precision, or the corrections do not hold for it or for the denoiser's.
            PtqdError: a file of the bundle is damaged.
        """
        bundle = Bundle.open(Path(path))
        chosen = bundle.schedule(schedule)
        check_precision(chosen, precision, corrected=correction == "on")
        _check_same_precision(watched, precision)
        chain = Chain(chosen, {}, None if precision == AUTO else precision, corrected=correction == "on")
        moves = tuple(chain.move(step) for step in chosen.steps)
        model = bundle.manifest.model
        return cls(model.noise_schedule, chosen, moves, watched if correction == "on" else None, PipelineCall.of(model))

    # What pipelines read

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state. A pipeline that reads it is assumed to scale the first state by it."""
        self._scales_start = True
        return self._schedule.init_sigma

    @property
    def step_index(self) -> int | None:
        """Number of the next step; None before the first."""
        return self._position.index

    @property
    def begin_index(self) -> int | None:
        """Number of the step at which the pipeline starts; None if it does not say."""
        return self._position.begin

    def __len__(self) -> int:
        return self._noise_schedule.num_train_timesteps

    # What pipelines call

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the chain at a later step than the noisiest."""
        self._position.begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        max_timesteps: float | None = None,
        intermediate_timesteps: float | None = None,
    ) -> None:
        """Begin a chain.

        Args:
            num_inference_steps: steps of the chain; None if `sigmas` says it.
            device: device of the timesteps.
            sigmas: levels [S] before any shift that a pipeline asks for. Evenly spaced ones from 1 to 1 / S, which some pipelines take
                without being told, ask for nothing.
            mu: dynamic shift of a flow, which flows without one ignore, as in diffusers.
            original_inference_steps: steps of the chain that a consistency model was distilled from.
            max_timesteps: angle of the first step, in pipelines with angles.
            intermediate_timesteps: angle of the second step of two, in the same.

        Raises:
            UsageError: the schedule has another number of steps, or other levels.
        """
        steps = num_inference_steps if sigmas is None else len(sigmas)
        if steps != self.num_inference_steps:
            raise UsageError(
                "The bundle's schedule has another number of steps.",
                found=f"num_inference_steps={steps}",
                expected=f"{self.num_inference_steps}",
                mend=AS_MANY.format(steps=self.num_inference_steps),
            )
        check_levels(self._schedule.sampler, sigmas)
        check_mu(self._noise_schedule.for_steps(steps), mu)
        check_original_steps(self._noise_schedule, original_inference_steps)
        self._states.check(max_timesteps, intermediate_timesteps)
        self.timesteps = self.timesteps.to(device)
        self._position.restart()
        self._scales, self._history = False, ()
        if self._watched is not None:
            self._watched.outputs.clear()
            self._watched.kept.restart()

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """Return the state, scaled for the network."""
        scale = self._position.here(timestep).step.input_scale
        self._scales = True
        return sample if scale == 1 else sample * float(np.float32(scale))

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        eta: float | None = None,
        use_clipped_model_output: bool | None = None,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """Return the next state; for LCM and SANA-Sprint also the clean sample, which their pipelines take at the end.

        Args:
            model_output: output of the denoiser after guidance, in the pipeline's form: [batch, channels, ...], or [batch, tokens, ...].
            timestep: timestep of the step.
            sample: the state, not scaled for the network.
            eta: for DDIM and TCD schedules, None or the schedule's own eta; other samplers have no eta and ignore it, as in diffusers.
            use_clipped_model_output: must not be true.
            generator: generator of the fresh noise, or one generator per sample.
            variance_noise: standard normal noise to use instead of fresh noise.
            return_dict: return an object with the field `prev_sample`, or a tuple.

        Raises:
            UsageError: a step is out of order, eta or guidance scale differ from the schedule's, or the state was not scaled.
        """
        self._check_options(eta, use_clipped_model_output)
        move = self._position.here(self._states.timestep(timestep))
        self._check_scaled(move)
        given = self._states.state(sample, move)
        output = self._states.output(model_output, given, move, self._own_output)
        self._check_guidance(output, move)
        z = self._latents(_noise(output, generator) if variance_noise is None else variance_noise) if move.sigma > 0 else None
        x, outputs = self._latents(given), self._latents(output)[None]
        state = advance(ChainState(x, self._history), outputs, move, z)
        self._history = state.history
        self._position.advance()
        self._scales = False
        following = self._moves[move.index + 1] if move.index + 1 < len(self._moves) else None
        previous = self._states.returned(self._call.given(torch.from_numpy(state.x)).to(sample), following)
        if return_dict:
            return SchedulerOutput(prev_sample=previous)
        if self._schedule.sampler.name not in CLEAN_TOO:
            return (previous,)
        clean = previous if z is None else self._call.given(torch.from_numpy(predicted_clean(x, outputs, move))).to(sample)
        return previous, clean

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return states at timesteps [batch] from clean samples and noise, for pipelines that start from an image.

        Raises:
            UsageError: the schedule does not visit a timestep, or a timestep lies between two training timesteps. Shifted schedules have
                such timesteps, and their corrections assume a chain from the start. Those of flows may be of any value.
        """
        if self._noise_schedule.prediction_type == "flow":
            return self.scale_noise(original_samples, timesteps, noise)
        values = timesteps.detach().to("cpu", torch.float64)
        if bool((values != values.round()).any()):
            raise UsageError(
                "A chain of this schedule cannot start from an image.",
                found=", ".join(f"timestep {value:g}" for value in values.tolist()),
                expected="whole timesteps",
                mend="add a schedule with whole timesteps and without shift: `ptqd-export schedule --variance schedule`",
            )
        signal = torch.from_numpy(alpha_bar(self._noise_schedule))[values.long()]
        moves = [self._moves[self._position.first_at(value)] for value in values.tolist()]
        scale = torch.tensor([move.step.input_scale for move in moves], dtype=torch.float64)
        per_sample = (-1, *[1] * (original_samples.ndim - 1))
        of_image, of_noise = ((root / scale).reshape(per_sample).to(original_samples) for root in (signal.sqrt(), (1 - signal).sqrt()))
        return of_image * original_samples + of_noise * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Return states `(1 - sigma) x0 + sigma eps` of a flow at timesteps [batch] from clean samples and noise.

        Raises:
            UsageError: the schedule does not visit a timestep, or the model is not a flow.
        """
        if self._noise_schedule.prediction_type != "flow":
            raise UsageError(
                "Only a flow mixes samples and noise by its timestep alone.",
                found=f"scale_noise of a model with prediction_type {self._noise_schedule.prediction_type}",
                expected="add_noise, as pipelines for such models call it",
            )
        for value in timestep.tolist():
            self._position.first_at(value)
        per_sample = (-1, *[1] * (sample.ndim - 1))
        sigma = (timestep.double() / self._noise_schedule.num_train_timesteps).reshape(per_sample).to(sample)
        return (1 - sigma) * sample + sigma * noise

    def save_pretrained(self, *_arguments: object, **_options: object) -> NoReturn:
        """Raise a UsageError: the schedule lives in its bundle."""
        raise UsageError(
            "A pipeline with a bundle's schedule in it cannot be saved.",
            found="save_pretrained of a PtqdScheduler",
            expected="the original pipeline, and the bundle beside it",
            mend="load the pipeline with from_pretrained and install the bundle again",
        )

    @property
    def _own_output(self) -> Tensor | None:
        """What the network returned in the one call of a step; None if it is not watched, or was called twice."""
        outputs = () if self._watched is None else tuple(self._watched.outputs)
        return outputs[0] if len(outputs) == 1 else None

    def _latents(self, given: Tensor) -> Float32:
        return self._call.latents(given).detach().to("cpu", torch.float32).numpy()

    # What the schedule cannot honour

    def _check_guidance(self, combined: Tensor, move: Move) -> None:
        """Refuse a guidance that the corrections were not fitted at, and forget the step's outputs."""
        if self._watched is None or not self._watched.outputs:
            return
        check_embedded_guidance(self._watched.guidance, self._watched.fitted_guidance)
        outputs, norm = torch.cat(list(self._watched.outputs)), NormGuidance.at(move.guidance, self._call.guidance_patch)
        if norm is None:
            check_guidance(outputs, combined, move.guidance, self._call.guidance)
        else:
            eps = torch.finfo(combined.dtype).eps
            check_norm_guidance(self._latents(outputs), self._latents(combined), norm, eps, self._call.guidance)
        self._watched.outputs.clear()

    def _check_options(self, eta: float | None, use_clipped_model_output: bool | None) -> None:
        own = self._schedule.sampler
        if eta is not None and SAMPLERS[own.name].any_eta and eta != own.eta:
            raise UsageError(
                "The bundle's schedule is for another eta.",
                found=f"eta={eta:g} (pipelines pass 0 unless told otherwise)",
                expected=f"{own.eta:g}",
                mend=f"call the pipeline with eta={own.eta:g}, or add a schedule with `ptqd-export schedule --eta`",
            )
        if use_clipped_model_output:
            raise UsageError(
                "The bundle's schedule keeps the network's own output where it clips the prediction.",
                found="use_clipped_model_output=True",
                expected="False or None",
            )

    def _check_scaled(self, move: Move) -> None:
        """Refuse pipelines that do not scale states, where the sampler's states have another scale."""
        neglected = {
            "scale_model_input": move.step.input_scale != 1 and not self._scales,
            "init_noise_sigma": self._schedule.init_sigma != 1 and not self._scales_start and self._position.index == 0,
        }
        for name, is_neglected in neglected.items():
            if is_neglected:
                raise UsageError(
                    f"The pipeline does not scale states by {name}.",
                    found=f"not used by timestep {move.step.timestep:g}",
                    expected=f"a pipeline for samplers such as {self._schedule.sampler.name}, whose states have another scale",
                    mend="add a ddim or ddpm schedule with `ptqd-export schedule`, or use another pipeline",
                )


def _check_same_precision(watched: PtqdDenoiser | None, precision: str) -> None:
    if watched is not None and watched.precision != precision:
        raise UsageError(
            "The corrections would be for another precision than the denoiser's.",
            found=f'precision="{precision}" with a denoiser of precision="{watched.precision}"',
            expected="the same for both",
        )


def _shifts(noise_schedule: NoiseSchedule) -> dict[str, float]:
    """Return fields from which a pipeline computes the schedule's own dynamic shift, whatever the number of tokens."""
    mu = noise_schedule.mu
    return {} if mu is None else {"base_shift": mu, "max_shift": mu}


def _noise(like: Tensor, generator: Generators) -> Tensor:
    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise
