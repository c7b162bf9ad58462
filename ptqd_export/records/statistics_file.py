"""The contract of `statistics/<placement>/<precision>.json`: measurements of one precision, by step and by layer."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calib.correction.correction_fit import Affine, residual_mean, residual_variance
from calib.correction.moments import Moments
from calib.walk.walk import StepResult
from engines.bundle.bundle import Bundle
from engines.bundle.contract import first_problem
from engines.errors import BundleError

SCHEMA_VERSION = 1

WALK = "walk.json"
"""File beside the statistics with the schedule that their walk took, if the corrections were chosen after it."""


class StoredStep(BaseModel):
    """The fields of a step that refits and checks read."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    snr_db: float | None
    moments: dict[str, Any]


class StatisticsFile(BaseModel):
    """The fields of the whole file that refits and checks read."""

    steps: Annotated[list[StoredStep], Field(min_length=1)]
    layers: list[dict[str, Any]]


Stored = TypeVar("Stored", bound=BaseModel)


def read_statistics(bundle: Bundle, file: str, kind: type[Stored]) -> Stored:
    """Read a statistics file of a bundle, or the part of the file that `kind` describes.

    Raises:
        BundleError: the file is damaged.
    """
    try:
        return kind.model_validate_json(json.dumps(bundle.json(file)))
    except ValidationError as error:
        raise BundleError(
            "The statistics are damaged.", found=f"{bundle.folder / file}: {first_problem(error)}", mend="build the bundle again"
        ) from error


def step_record(result: StepResult, precision: str, guidance: float) -> dict[str, Any]:
    """Record of one step: the paper's split of the noise after guidance, what the correction leaves, and the underlying moments."""
    noise, correction = result.noise[precision], result.corrections[precision]
    joint = result.moments[precision]
    return {
        "step": result.step,
        "timestep": result.timestep,
        "n": noise.n,
        "k": noise.k,
        "k_standard_error": _finite(noise.k_standard_error),
        "k_channel": noise.k_channel.tolist(),
        "mu": noise.mu.tolist(),
        "s2": noise.s2,
        "r2": noise.r2,
        "snr_db": _finite(noise.snr_db),
        "corrected_snr_db": _finite(corrected_snr_db(joint.guided(guidance), correction.affine)),
        "residual_variance": correction.residual_variance,
        "moments": joint.to_json(),
    }


def corrected_snr_db(moments: Moments, affine: Affine) -> float:
    """10 log10 of the power of `e` over that of `e' - e`, from the moments of `x, e, d`; infinite if `e' - e` is zero."""
    signal = float(np.mean(moments.variance("e") + moments.mean_of("e") ** 2))
    noise = residual_variance(moments, affine) + float(np.mean(residual_mean(moments, affine) ** 2))
    return 10 * math.log10(signal / noise) if noise else math.inf


def statistics(
    precision: str,
    placement: str,
    guidance: float,
    steps: list[dict[str, Any]],
    layers: list[dict[str, Any]],
    attention: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the content of the whole file; `attention` is None where the plan leaves all attention in float."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "precision": precision,
        "placement": placement,
        "guidance": guidance,
        "steps": steps,
        "layers": layers,
    }
    return content if attention is None else content | {"attention": attention}


def _finite(value: float) -> float | None:
    """Replace infinity, which JSON lacks, with None. It occurs if nothing was quantized or if there is only one fold."""
    return value if math.isfinite(value) else None
