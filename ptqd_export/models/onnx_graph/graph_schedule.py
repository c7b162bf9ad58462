"""The noise schedule of a graph, from the plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engines.errors import PtqdError, UsageError
from engines.samplers.few_steps import few_steps_of
from engines.samplers.levels.noise_schedule import NoiseSchedule, PredictionType
from engines.samplers.of_scheduler import sampler_of
from engines.untrusted.untrusted_json import read_json_object
from ptqd_export.plan.graph_section import GraphSection, NoiseSection, Preconditioning

EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""Schedulers that compute the factors of Karras et al. 2022 around the network, which then is a bare one."""

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
        config = _config(folder / section.scheduler)
        if config.get("_class_name") in EDM:
            return _of_numbers(_range(config), "sample").model_copy(update=_spacing(config))
        found = NoiseSchedule.from_scheduler_config(config)
        return found if section.predicts is None else found.model_copy(update={"prediction_type": section.predicts})
    return _of_numbers(section.schedule or NoiseSection(), section.predicts)


def preconditioning_of(section: GraphSection, folder: Path) -> tuple[Preconditioning | None, float, bool]:
    """Return the factors around the graph, the standard deviation of the data in them, and whether the graph's output is negative.

    They are the plan's, or those that the scheduler's configuration implies.

    Raises:
        UsageError: the plan contradicts the configuration.
    """
    config = {} if section.scheduler is None else _config(folder / section.scheduler)
    if config.get("_class_name") not in EDM:
        return section.preconditioning, section.sigma_data, False
    sigma_data = _number(config, "sigma_data", 0.5)
    _check_agrees(section, {"predicts": "sample", "preconditioning": "edm", "sigma_data": sigma_data})
    return "edm", sigma_data, config.get("prediction_type") == "v_prediction"


def _check_agrees(section: GraphSection, implied: Mapping[str, object]) -> None:
    for name, value in implied.items():
        stated = getattr(section, name) if name in section.model_fields_set else None
        if stated not in (None, value):
            raise UsageError(
                "The plan contradicts the scheduler's configuration.",
                found=f"model.graph.{name} = {stated}, beside {section.scheduler}",
                expected=str(value),
                mend=f"leave model.graph.{name} out, or correct the configuration",
            )


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


def _range(config: Mapping[str, object]) -> NoiseSection:
    """Return the noise levels of an EDM scheduler; defaults are those of diffusers' classes."""
    low, high, rho = (_number(config, key, value) for key, value in (("sigma_min", 0.002), ("sigma_max", 80.0), ("rho", 7.0)))
    return NoiseSection(sigma_min=low, sigma_max=high, rho=rho)


def _spacing(config: Mapping[str, object]) -> dict[str, object]:
    even = config.get("sigma_schedule") == "exponential"
    kept = {key: config[key] for key in ("final_sigmas_type", "solver_type") if config.get(key) is not None}
    return {"use_karras_sigmas": not even, "use_exponential_sigmas": even, **kept}


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    found = config.get(key)
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, int | float) or found <= 0:
        raise UsageError("The scheduler's configuration has no such value.", found=f"{key} = {found!r}", expected="a number above 0")
    return float(found)


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
