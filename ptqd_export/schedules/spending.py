"""The policy `budget` for a schedule that is added: probes with the bundle's engines, then an integer program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from calib.budget import Menu, check_budget, choose
from calib.sensitivity import probe
from engines.bank import EngineBank
from engines.bundle import Bundle
from engines.errors import UsageError
from engines.schedule import Schedule
from ptqd_export.plan import FULL_PRECISION, Cost
from ptqd_export.schedules.calibration_noise import calibration_noise
from ptqd_export.schedules.probing import PROBED_SAMPLES, probe_plan
from ptqd_export.schedules.settings import ScheduleSettings
from ptqd_export.times_file import read_times, times_file


def costs_of(bundle: Bundle, candidates: Sequence[str], cost: Cost) -> dict[str, float]:
    """What a step of each candidate costs, as a share of full precision's.

    Raises:
        UsageError: time is asked for, and this machine has not timed the bundle's engines.
    """
    if cost == "bit_operations":
        return {name: 1 / bundle.manifest.precisions[name].bit_operations_saved_all for name in candidates}
    times = _times(bundle)
    for name in (FULL_PRECISION, *candidates):
        if name not in times:
            raise UsageError("An engine was not timed here.", found=name, expected=" or ".join(times), mend="build the bundle again")
    return {name: times[name] / times[FULL_PRECISION] for name in candidates}


def spend(bundle: Bundle, settings: ScheduleSettings, fitted: Schedule, on_step: Callable[[], None]) -> tuple[str, ...]:
    """The precision of every step: least predicted error within the budget.

    Args:
        bundle: its engines are probed with.
        settings: with a budget; its precisions are the candidates.
        fitted: the corrections of every candidate at every step.
        on_step: called after every step of the probes.

    Raises:
        UsageError: no chain is as cheap as the budget.
    """
    assert settings.budget is not None
    costs = costs_of(bundle, settings.precisions, settings.budget.cost)
    check_budget(costs, settings.budget.share)
    bank = EngineBank(bundle, settings.sampler.guidance, batch=PROBED_SAMPLES, threads=settings.threads)
    networks = {name: bank[name] for name in dict.fromkeys((FULL_PRECISION, *settings.precisions))}
    model = bundle.manifest.model
    rows = None if model.conditioning is None else model.conditioning.rows
    noise = calibration_noise(settings.calibration.seed, model.sample_shape)
    plan = probe_plan(fitted, networks, noise, rows, PROBED_SAMPLES)
    return choose(Menu.of(probe(plan, on_step), costs), settings.budget.share)


def _times(bundle: Bundle) -> Mapping[str, float]:
    path = times_file(bundle.folder)
    if not path.is_file():
        raise UsageError(
            "The bundle's engines were not timed on this machine.",
            found=f"no {path}",
            expected="the file that `ptqd-export build` writes",
            mend="build the bundle here, or give --cost bit_operations",
        )
    return read_times(path).milliseconds_a_step
