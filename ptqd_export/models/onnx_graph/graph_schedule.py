"""The noise schedule of a graph, from the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.errors import PtqdError
from engines.samplers.few_steps import few_steps_of
from engines.samplers.levels.noise_schedule import NoiseSchedule, PredictionType
from engines.samplers.of_scheduler import sampler_of
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.plan.graph_section import GraphSection, NoiseSection

OWN_KINDS = {"beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps"}
"""Fields of the plan that are fields of the noise schedule too."""


def noise_schedule(section: GraphSection, folder: Path) -> NoiseSchedule:
    """Return the noise schedule that the plan states, with what the network predicts.

    Args:
        section: the plan's words.
        folder: folder of the plan.

    Raises:
        UsageError: the scheduler's configuration is not supported.
        PtqdError: its file cannot be read.
    """
    if section.scheduler is not None:
        found = NoiseSchedule.from_scheduler_config(_config(folder / section.scheduler))
        return found if section.predicts is None else found.model_copy(update={"prediction_type": section.predicts})
    return _of_numbers(section.schedule or NoiseSection(), section.predicts)


def own_sampler(section: GraphSection, folder: Path) -> tuple[str, int | None, float | None]:
    """Return the sampler, the steps and the guidance of a scheduler's configuration, or those that suit the numbers of the plan."""
    if section.scheduler is not None:
        config = _config(folder / section.scheduler)
        few = few_steps_of(config)
        return sampler_of(config).name, few.steps, few.guidance
    if section.schedule is not None and section.schedule.sigma_min is not None:
        return ("consistency", 1, None) if section.preconditioning == "consistency" else ("heun", None, None)
    return ("flow-euler" if section.predicts == "flow" else "ddim"), None, None


def _config(path: Path) -> dict[str, object]:
    return dict(read_json_object(path, PtqdError, infinities=True))


def _of_numbers(section: NoiseSection, predicts: PredictionType | None) -> NoiseSchedule:
    if section.sigma_min is not None:
        return NoiseSchedule(
            num_train_timesteps=section.num_train_timesteps,
            sigma_min=section.sigma_min,
            sigma_max=section.sigma_max,
            rho=section.rho,
            prediction_type=predicts or "sample",
            timestep_spacing="linspace",
            use_karras_sigmas=True,
            clip_sample=False,
        )
    fields = section.model_dump(include=OWN_KINDS)
    if section.alphas_cumprod is not None:
        fields["trained_betas"] = _betas(section.alphas_cumprod)
    return NoiseSchedule(**fields, shift=section.shift, prediction_type=predicts or "epsilon", clip_sample=False)


def _betas(alphas: tuple[float, ...]) -> tuple[float, ...]:
    kept = np.array(alphas) / np.array([1.0, *alphas[:-1]])
    return tuple((1 - kept).tolist())
