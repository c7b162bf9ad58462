"""The corrected schedule of a bundle in the place of a pipeline's scheduler."""

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
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.chain.step import ChainState, Move, advance
from engines.errors import UsageError
from engines.networks.chain_choice import AUTO
from engines.samplers.levels.alphas import alpha_bar
from engines.samplers.levels.noise_schedule import NoiseSchedule
from ptqd_export.diffusers.denoiser import PtqdDenoiser
from ptqd_export.diffusers.guidance import check_guidance
from ptqd_export.diffusers.position import Position, as_timesteps
from ptqd_export.diffusers.timesteps import AS_MANY

Generators = torch.Generator | list[torch.Generator] | None


class PtqdScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped here
    """A scheduler of diffusers that walks a bundle's schedule: the correction, then the sampler's step, then the calibrated noise.

    The arithmetic is that of `ptqd-run sample`, on the host in float32; states keep the type and the device of the pipeline's.

    Args:
        noise_schedule: what the model was trained with; `config` shows it.
        schedule: of the bundle.
        moves: one for each of its steps.
        watched: the denoiser whose output is guided, to refuse another guidance than the fitted one; None trusts the pipeline.
    """

    config_name = "scheduler_config.json"
    order = 1

    def __init__(
        self, noise_schedule: NoiseSchedule, schedule: Schedule, moves: tuple[Move, ...], watched: PtqdDenoiser | None = None
    ) -> None:
        self.register_to_config(**noise_schedule.model_dump())
        self._noise_schedule = noise_schedule
        self._schedule = schedule
        self._moves = moves
        self._watched = watched
        self._position = Position(schedule, moves)
        self._scales = False
        self._scales_start = False
        self._history: Sequence[Float32] = ()
        self.timesteps = as_timesteps(moves)
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
        """A schedule of a bundle.

        Args:
            path: folder of the bundle.
            schedule: its name.
            precision: that of the denoiser.
            correction: off is the plain sampler.
            watched: see the class.

        Raises:
            UsageError: no such bundle, schedule or precision, or corrections that do not hold for the precision, or for the denoiser's.
            PtqdError: a file of the bundle is damaged.
        """
        bundle = Bundle.open(Path(path))
        chosen = bundle.schedule(schedule)
        _check_precision(chosen, precision, corrected=correction == "on")
        _check_same_precision(watched, precision)
        chain = Chain(chosen, {}, None if precision == AUTO else precision, corrected=correction == "on")
        moves = tuple(chain.move(step) for step in chosen.steps)
        return cls(bundle.manifest.model.noise_schedule, chosen, moves, watched if correction == "on" else None)

    # What pipelines read

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first state; whoever asks is taken to scale the start by it."""
        self._scales_start = True
        return self._schedule.init_sigma

    @property
    def step_index(self) -> int | None:
        """Number of the step that comes next, None before the first."""
        return self._position.index

    @property
    def begin_index(self) -> int | None:
        """Number of the step that the pipeline starts at, where it says so."""
        return self._position.begin

    def __len__(self) -> int:
        return self._noise_schedule.num_train_timesteps

    # What pipelines call

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the chain at a later step than the noisiest."""
        self._position.begin = begin_index

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Begin a chain.

        Raises:
            UsageError: the schedule has another number of steps.
        """
        if num_inference_steps != self.num_inference_steps:
            raise UsageError(
                "The bundle's schedule has another number of steps.",
                found=f"num_inference_steps={num_inference_steps}",
                expected=f"{self.num_inference_steps}",
                mend=AS_MANY.format(steps=self.num_inference_steps),
            )
        self.timesteps = self.timesteps.to(device)
        self._position.restart()
        self._scales, self._history = False, ()

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """The state as the network takes it."""
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
    ) -> SchedulerOutput | tuple[Tensor]:
        """The next state.

        Args:
            model_output: [batch, channels, ...] of the denoiser, after guidance.
            timestep: that of the step.
            sample: the state, not scaled for the network.
            eta: of DDIM schedules, None or the schedule's own; other samplers have none and ignore it, as in diffusers.
            use_clipped_model_output: must not be true.
            generator: of the fresh noise, one or one a sample.
            variance_noise: standard normal to use instead.
            return_dict: return an object with the field `prev_sample`, or a tuple.

        Raises:
            UsageError: steps out of order, another eta or guidance than the schedule's, or a state that was not scaled.
        """
        self._check_options(eta, use_clipped_model_output)
        move = self._position.here(timestep)
        self._check_scaled(move)
        if self._watched is not None and self._watched.last_output is not None:
            check_guidance(self._watched.last_output, model_output, move.guidance)
        z = _array(_noise(model_output, generator) if variance_noise is None else variance_noise) if move.sigma > 0 else None
        state = advance(ChainState(_array(sample), self._history), _array(model_output)[None], move, z)
        self._history = state.history
        self._position.advance()
        self._scales = False
        previous = torch.from_numpy(state.x).to(sample)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """States at timesteps [batch] from clean samples and noise, for pipelines that start from an image.

        Raises:
            UsageError: a timestep that the schedule does not visit, or one between two training timesteps. Those of shifted schedules
                are, and their corrections suppose a chain from the start.
        """
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

    def save_pretrained(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refused: the schedule lives in its bundle."""
        raise UsageError(
            "A pipeline with a bundle's schedule in it cannot be saved.",
            found="save_pretrained of a PtqdScheduler",
            expected="the pipeline as it was before, and the bundle beside it",
            mend="load the pipeline with from_pretrained and install the bundle again",
        )

    # What the schedule cannot honour

    def _check_options(self, eta: float | None, use_clipped_model_output: bool | None) -> None:
        own = self._schedule.sampler
        if eta is not None and own.name == "ddim" and eta != own.eta:
            raise UsageError(
                "The bundle's schedule is for another eta.",
                found=f"eta={eta:g} (0 is what pipelines give where none is named)",
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
        """Samplers on states of another scale need what not every pipeline does."""
        neglected = {
            "scale_model_input": move.step.input_scale != 1 and not self._scales,
            "init_noise_sigma": self._schedule.init_sigma != 1 and not self._scales_start and self._position.index == 0,
        }
        for name, is_neglected in neglected.items():
            if is_neglected:
                raise UsageError(
                    f"The pipeline does not scale states by {name}.",
                    found=f"no use of it by timestep {move.step.timestep:g}",
                    expected=f"a pipeline for samplers such as {self._schedule.sampler.name}, whose states are of another scale",
                    mend="add a ddim or ddpm schedule with `ptqd-export schedule`, or take another pipeline",
                )


def _check_precision(schedule: Schedule, precision: str, *, corrected: bool) -> None:
    known = (AUTO, *schedule.precisions)
    if precision not in known:
        raise UsageError("The schedule has no such precision.", found=precision, expected=" or ".join(known))
    if precision != AUTO and corrected and not schedule.corrects(precision):
        own = sorted({step.precision for step in schedule.steps})
        raise UsageError(
            "The schedule's steps are shifted by the noise of its own precisions.",
            found=f'precision="{precision}"',
            expected=f'precision="{AUTO}", which takes {", ".join(own)}',
            mend='add a schedule for that precision with `ptqd-export schedule`, or give correction="off"',
        )


def _check_same_precision(watched: PtqdDenoiser | None, precision: str) -> None:
    if watched is not None and watched.precision != precision:
        raise UsageError(
            "The corrections would be those of another precision than the denoiser's.",
            found=f'precision="{precision}" beside a denoiser of precision="{watched.precision}"',
            expected="the same for both",
        )


def _array(tensor: Tensor) -> Float32:
    return tensor.detach().to("cpu", torch.float32).numpy()


def _noise(like: Tensor, generator: Generators) -> Tensor:
    noise: Tensor = randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return noise
