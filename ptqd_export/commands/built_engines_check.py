"""Check that engines built on this machine agree with the bundle's statistics: the build's own check, on another runtime."""

from __future__ import annotations

from engines.apps.compare.engine_check import EngineCheck, check_engines
from engines.backends.base import Backend
from engines.backends.choice import on_onnxruntime
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.contract import contract
from engines.chain.denoiser import is_guided
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.errors import BundleError
from engines.networks.engine_bank import EngineBank
from engines.terminal.progress import progress
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.statistics_file import WALK, StatisticsFile, read_statistics
from ptqd_export.records.stored_statistics import statistics_file
from ptqd_export.schedules.settings import calibration_samples, stored_plan

REFERENCE = "reference"
"""Full precision as it ran when the statistics were measured. The engine of full precision is itself one of the checked engines."""

OTHER_RUNTIME_DB = 1.0
"""Tolerance for another runtime's rounding of ties and order of sums. This is a choice: no other runtime has been measured yet."""

ROUNDING_DB = 50.0
"""An SNR that only rounding reaches: float16 and TF32 leave 60 dB and more, quantizers less than this."""


def check_on(bundle: Bundle, backend: Backend) -> float:
    """Measure the noise of a bundle's engines on a backend; return the largest departure from the statistics in dB.

    Raises:
        DepartureError: an SNR departs from the statistics.
    """
    check = _check(bundle, backend)
    with progress("checking", check.evaluations) as advance:
        return check_engines(check, advance)


def _check(bundle: Bundle, backend: Backend) -> EngineCheck:
    calibration, schedule = stored_plan(bundle).calibration, _walked_schedule(bundle)
    guidance, samples = schedule.sampler.guidance, calibration_samples(bundle, calibration)
    batch = _most_samples(bundle, calibration.batch_size, guided=is_guided(guidance))
    engines = EngineBank(bundle, guidance, batch=batch, backend=backend)
    reference = EngineBank(bundle, guidance, batch=batch, backend=on_onnxruntime(bundle))[FULL_PRECISION]
    names = [name for name in bundle.manifest.precisions if name in schedule.precisions]
    at_cut = () if schedule.cut is None else Chain(schedule, {}).networks
    return EngineCheck(
        schedule=schedule,
        reference=REFERENCE,
        networks={REFERENCE: reference, **{name: engines[name] for name in (*names, *at_cut)}},
        expected={name: _expected(bundle, name) for name in names},
        noise=samples.noise,
        rows=samples.rows,
        trajectory=calibration.trajectory,
        batch_size=batch,
        runtime_db=OTHER_RUNTIME_DB,
        rounding_db=ROUNDING_DB,
    )


def _walked_schedule(bundle: Bundle) -> Schedule:
    """Return the schedule that the walk of the statistics took: the default schedule, unless its corrections were chosen afterwards."""
    file = f"{bundle.statistics_folder}/{WALK}"
    return contract(Schedule, bundle.json(file), bundle.folder / file) if file in bundle.manifest.files else bundle.schedule()


def _most_samples(bundle: Bundle, wanted: int, *, guided: bool) -> int:
    """Return the statistics' batch size, or the largest that the engines were built for if that is smaller."""
    profile = bundle.manifest.target.profile
    return wanted if profile is None else min(wanted, profile.max // (2 if guided else 1))


def _expected(bundle: Bundle, precision: str) -> list[float | None]:
    """Return the stored `snr_db` of a precision at every step; None where nothing differs, as for full precision."""
    if precision == FULL_PRECISION:
        return [None] * len(bundle.schedule().steps)
    file, steps = statistics_file(bundle, DEFAULT, precision), len(bundle.schedule().steps)
    measured = [step.snr_db for step in read_statistics(bundle, file, StatisticsFile).steps]
    if len(measured) != steps:
        raise BundleError("The statistics belong to another chain.", found=f"{file}: {len(measured)} steps", expected=f"{steps} steps")
    return measured
