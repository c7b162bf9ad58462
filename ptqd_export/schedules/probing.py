"""The probes that a budget is spent by: which samples, and which networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from calib.sensitivity import ProbePlan
from engines.denoiser import Denoiser
from engines.noise import NoiseSource
from engines.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.calibration_noise import calibration_rows

PROBED_SAMPLES = 16


def probe_plan(schedule: Schedule, networks: Mapping[str, Denoiser], noise: NoiseSource, rows: int | None, samples: int) -> ProbePlan:
    """Every network but full precision's at every step, on the first calibration samples.

    Args:
        schedule: the corrections of every network.
        networks: by precision, full precision among them.
        noise: of the calibration.
        rows: of the conditioning table; None for an unconditional model.
        samples: how many.
    """
    return ProbePlan(
        schedule=schedule,
        reference=networks[FULL_PRECISION],
        quantized={name: network for name, network in networks.items() if name != FULL_PRECISION},
        noise=noise,
        samples=np.arange(samples, dtype=np.int64),
        rows=calibration_rows(noise, samples, rows),
        batch_size=samples,
    )
