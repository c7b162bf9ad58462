"""`ptqd-export schedule`: adds a schedule to a bundle without quantizing anything again."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from calib.walk.budget import Menu, check_budget, choose
from calib.walk.cheapest_chain import cheapest_reaching, decibels, predicted_error
from calib.walk.end_choice import choose_by_end, end_evaluations, round_size
from calib.walk.fit import PROBED_SAMPLES, FitNetworks, FittedChain, fit_on_walk, probe_evaluations, probe_fitted, refit, walk_evaluations
from calib.walk.reuse_errors import ReusePlan, aged_features, end_amplitudes, reuse_evaluations
from calib.walk.sensitivity import Probes
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.image_size import ImageSize, size_name
from engines.chain.features import cut_name, precision_and_cut
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.host.interruption import keeping
from engines.networks.engine_bank import EngineBank
from engines.terminal.progress import progress
from ptqd_export.measuring.bundle_backend import bundle_measuring_backend, measuring_decoder
from ptqd_export.measuring.judged_pictures import pictured_by
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.records.statistics_file import statistics, step_record
from ptqd_export.records.stored_statistics import StoredStatistics, load_statistics, statistics_file
from ptqd_export.records.times_file import without_gain
from ptqd_export.schedules.costs import check_cost, costs_of, measured_times
from ptqd_export.schedules.settings import Budget, Fit, ScheduleRequest, ScheduleSettings, resolve
from ptqd_export.schedules.stored_schedule import store_schedule
from ptqd_export.schedules.sufficient import why_not_refit

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclass(frozen=True)
class AddedSchedule:
    """The added schedule.

    Attributes:
        bundle: folder of the bundle.
        name: name of the schedule.
        schedule: the schedule.
        fit: what it was fitted on.
        seconds: how long adding it took.
        predicted: PSNR in dB that the probes predict of a chain that a budget chose; None for other chains, and for latent models.
    """

    bundle: Path
    name: str
    schedule: Schedule
    fit: Fit
    seconds: float
    predicted: float | None = None
    size: ImageSize | None = None

    def __str__(self) -> str:
        taken = Counter(step.network for step in self.schedule.steps)
        steps = ", ".join(f"{count} {precision}" for precision, count in taken.items())
        steps += "" if self.predicted is None else f", predicted PSNR {self.predicted:.1f} dB"
        how = "refitted from the stored moments" if self.fit == "moments" else "fitted on a new walk"
        size = "" if self.size is None else f" --size {size_name(self.size)}"
        return (
            f"schedule {self.name}: {how} in {self.seconds:.1f} s, steps: {steps}; "
            f"next: ptqd-run sample {self.bundle} --schedule {self.name}{size} --num 64 --seed 1 --output out"
        )


def add_schedule(
    bundle: str | PathLike[str], name: str, request: ScheduleRequest, *, force: bool = False, size: ImageSize | None = None
) -> AddedSchedule:
    """Add `schedules/<name>.json` and, after a new walk, its statistics.

    Args:
        bundle: folder of the bundle.
        name: name of the schedule.
        request: the schedule to add.
        force: replace an existing schedule of this name.
        size: height and width of the images in pixels that the schedule is for; None takes the bundle's first.

    Raises:
        UsageError: the request does not fit the bundle. Nothing is written.
        PtqdError: the bundle is damaged, a network failed, or another process is writing to the bundle. Nothing is written.
    """
    begin, folder = time.perf_counter(), Path(bundle)
    _check_name(Bundle.open(folder, size), name, force=force)
    with writing_to(folder), keeping("the bundle has no new schedule"):
        added = _added(Bundle.open(folder, size), name, request, force=force)
    return replace(added, seconds=time.perf_counter() - begin, size=size)


def _added(bundle: Bundle, name: str, request: ScheduleRequest, *, force: bool) -> AddedSchedule:
    _check_name(bundle, name, force=force)
    layers, settings = load_statistics(bundle, DEFAULT).layers, resolve(request, bundle)
    if settings.budget is not None:
        check_cost(bundle, settings.budget.cost)
    stored = None if request.fit == "walk" else _sufficient_moments(request, settings, bundle)
    predicted = None
    if settings.budget is not None:
        settings, predicted = _spend(bundle, settings, settings.budget, _fit(bundle, settings, stored).schedule)
        stored = None if settings.fit.reuse is not None else stored  # features that are reused come from a walk of the same chain
    fitted = _chosen(bundle, settings, _fit(bundle, settings, stored))
    measured = _statistics(bundle, name, fitted, layers) if stored is None else {}
    store_schedule(bundle, name, {bundle.schedule_file(name): fitted.schedule.model_dump_json(indent=1) + "\n", **measured})
    return AddedSchedule(bundle.folder, name, fitted.schedule, "walk" if stored is None else "moments", 0.0, predicted)


def _check_name(bundle: Bundle, name: str, *, force: bool) -> None:
    if not re.fullmatch(NAME, name):
        raise UsageError(
            "A schedule cannot have this name.", found=name, expected="letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    if name == DEFAULT:
        raise UsageError("Only a build can write the default schedule.", found=f"--name {name}", expected="another name")
    if name in bundle.schedules and not force:
        raise UsageError("The bundle already has this schedule.", found=name, expected="a new name", mend="use --force to replace it")


def _sufficient_moments(request: ScheduleRequest, settings: ScheduleSettings, bundle: Bundle) -> StoredStatistics | None:
    """Return the stored moments if they suffice for this schedule, or None if a new walk is needed."""
    stored = load_statistics(bundle, request.base)
    reason = why_not_refit(request, settings, bundle.schedule(request.base), stored)
    if request.fit == "moments" and reason is not None:
        raise UsageError("The stored moments do not suffice for this schedule.", found=f"--fit moments; {reason}", expected="--fit walk")
    return stored if reason is None else None


def _fit(bundle: Bundle, settings: ScheduleSettings, stored: StoredStatistics | None) -> FittedChain:
    if stored is not None:
        return refit(settings.fit, stored.moments, FULL_PRECISION)
    networks = measured_networks(bundle, settings, settings.fit.batch_size)
    with progress("walking", walk_evaluations(networks.networks, settings.fit)) as advance:
        return fit_on_walk(networks, settings.fit, bundle.folder / "local", advance)


def _chosen(bundle: Bundle, settings: ScheduleSettings, fitted: FittedChain) -> FittedChain:
    """Return the chain with the corrections that end nearest, if the settings leave the choice open."""
    if not settings.fit.proposals:
        return fitted
    model, decoder = bundle.manifest.model, measuring_decoder(bundle, settings.threads)
    shape = model.sample_shape if model.decoder is None else model.decoder.image_shape
    networks = replace(measured_networks(bundle, settings, round_size(settings.fit)), pictured=pictured_by(decoder, shape))
    with progress("judging", end_evaluations(settings.fit, len(networks.networks))) as advance:
        return choose_by_end(networks, fitted, advance)


def _spend(bundle: Bundle, settings: ScheduleSettings, budget: Budget, first: Schedule) -> tuple[ScheduleSettings, float | None]:
    """Return the settings with the chain that the budget buys, and the PSNR that the probes predict of its pictures. It is the chain with
    the least error that they predict, or the cheapest one that they predict to be good enough.

    Raises:
        UsageError: every chain costs more than the budget, or none is predicted to be good enough.
    """
    costs = costs_of(bundle, settings.precisions, budget.cost)
    if settings.cut is None and budget.share is not None:
        check_budget(costs, budget.share)
    networks = measured_networks(bundle, settings, PROBED_SAMPLES)
    with progress("probing", probe_evaluations(len(networks.networks), settings.fit.table.steps)) as advance:
        probes = probe_fitted(networks, first, settings.fit.samples, advance)
    menu = Menu.of(probes, costs) if settings.cut is None else _reusing(bundle, settings, budget, Menu.of(probes, costs), probes)
    if budget.psnr is not None:
        chosen = cheapest_reaching(menu, probes, budget.psnr)
    else:
        assert budget.share is not None
        chosen = choose(menu, budget.share)
    of_pictures = bundle.manifest.model.decoder is None
    return settings.spent(chosen), decibels(predicted_error(menu, probes, chosen)) if of_pictures else None


def _reusing(bundle: Bundle, settings: ScheduleSettings, budget: Budget, menu: Menu, probes: Probes) -> Menu:
    """Return the menu with networks that reuse features, whose errors are measured by age. Those that save no time here are left out."""
    at_cut = tuple(cut_name(precision, str(settings.cut)) for precision in settings.precisions)
    at_cut = tuple(name for name in at_cut if name not in without_gain(measured_times(bundle)))
    if not at_cut:
        return menu
    networks = measured_networks(bundle, settings, PROBED_SAMPLES, at_cut)
    plan = ReusePlan.of(networks, settings.fit, at_cut)
    with progress("aging features", reuse_evaluations(len(at_cut), plan.table.steps)) as advance:
        errors = aged_features(plan, advance).errors
    costs = costs_of(bundle, at_cut, budget.cost)
    return menu.reusing(at_cut, end_amplitudes(errors, probes), list(costs.values()))


def measured_networks(bundle: Bundle, settings: ScheduleSettings, batch: int, at_cut: Sequence[str] = ()) -> FitNetworks:
    """Open full precision and the candidates for batches of `batch` samples, on the backend that measured the bundle's statistics.

    Args:
        bundle: the bundle.
        settings: settings of the fit.
        batch: samples in a batch.
        at_cut: names of networks at a cut to open besides those of the fit.

    Raises:
        UsageError: the model cannot be guided.
    """
    backend = bundle_measuring_backend(bundle, settings.threads)
    bank = EngineBank(bundle, settings.fit.sampler.guidance, batch=batch, backend=backend)
    walked = () if settings.fit.reuse is None else settings.fit.reuse.networks
    return FitNetworks(
        {name: bank[name] for name in dict.fromkeys((FULL_PRECISION, *settings.precisions, *walked, *at_cut))}, FULL_PRECISION
    )


def _statistics(bundle: Bundle, name: str, fitted: FittedChain, layers: Mapping[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the contents of the statistics files of each quantized precision on the walk, by file name."""
    placement, guidance = bundle.manifest.placement, fitted.settings.sampler.guidance
    contents = {
        name: statistics(
            name,
            placement,
            guidance,
            [step_record(result, name, guidance) for result in fitted.results if name in result.moments],
            layers.get(precision_and_cut(name)[0], []),
        )
        for name in fitted.schedule.networks
        if name != FULL_PRECISION
    }
    return {statistics_file(bundle, name, key): json.dumps(content, allow_nan=False) + "\n" for key, content in contents.items()}
