"""The policy `budget`: the stages `probes`, `times` and `choice`, and the frontier of chains.

The stages run after a walk with the policy `snr`, which fits the corrections of every precision, and before the walk of the chosen chain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from calib.walk.budget import Menu, check_budget, choose, frontier
from calib.walk.chain_error import ChainErrors, with_precisions
from calib.walk.fit import PROBED_SAMPLES, probe_evaluations, probe_fitted
from calib.walk.sensitivity import Probes
from engines.chain.schedule import Schedule
from engines.host.files import write_text
from engines.host.machine import machine_name
from ptqd_export.records.frontier_file import Choice, Frontier, Kind, MeasuredError, measured_of
from ptqd_export.records.times_file import TIMES
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, schedule_path
from ptqd_export.stages.fit.fit_inputs import fit_networks
from ptqd_export.stages.fit.timing import time_engines
from ptqd_export.stages.reporter import Reporter, each
from ptqd_export.stages.stage_cache import StageCache

CHECKED_SAMPLES = 32
"""Number of samples that real chains are measured on. They are not the probed samples."""

FRONTIER_POINTS = 24
CHECKED_POINTS = 6
MIXTURES = 6

CHOICE = "choice.json"
FRONTIER = "frontier.json"
PROBES = "probes.npz"


@dataclass(frozen=True)
class Chosen:
    """The chain that the budget buys.

    Attributes:
        precisions: one precision per step.
        walked: folder of the walk that the choice is based on.
        probes: folder of the stage `probes`.
        folder: folder of the stage `choice`, with `frontier.json`.
        times: milliseconds per step by precision, measured on this machine; None if the target's engines do not run here.
    """

    precisions: Choice
    walked: Path
    probes: Path
    folder: Path
    times: Mapping[str, float] | None


def choose_precisions(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path], walked: Path) -> Chosen:
    """Choose the chain that the plan's budget buys.

    Args:
        context: context of the build.
        cache: cache of the stages.
        graphs: folders of the stages that made the graphs, by precision.
        walked: folder of the walk with the policy `snr`.

    Raises:
        UsageError: every chain costs more than the budget.
    """
    steps, names = context.plan.steps, {name: folder.name for name, folder in graphs.items()}
    times = _times(context, cache, graphs) if context.is_timed else None
    costs = time_costs(context, times) if steps.cost == "time" and times is not None else bit_operation_costs(context, graphs)
    assert steps.budget is not None
    check_budget(costs, steps.budget)
    probes = cache.run("probes", {"walked": walked.name, "graphs": names}, partial(make_probes, context, graphs, walked))
    wanted = {"probes": probes.name, "budget": steps.budget, "costs": costs}
    folder = cache.run("choice", wanted, partial(make_choice, context, graphs, walked, probes, costs))
    return Chosen(tuple(json.loads((folder / CHOICE).read_text())), walked, probes, folder, times)


def _times(context: BuildContext, cache: StageCache, graphs: Mapping[str, Path]) -> dict[str, float]:
    names = {name: folder.name for name, folder in graphs.items()}
    timed = {"graphs": names, "target": context.plan.target.model_dump(), "machine": machine_name()}
    times: dict[str, float] = json.loads((cache.run("times", timed, partial(make_times, context, graphs)) / TIMES).read_text())
    return times


def make_probes(context: BuildContext, graphs: Mapping[str, Path], walked: Path, folder: Path, reporter: Reporter) -> None:
    """Write `probes.npz`."""
    schedule, networks = _schedule(walked), fit_networks(context, graphs, PROBED_SAMPLES)
    on_evaluation = each(reporter, probe_evaluations(len(networks.networks), len(schedule.steps)))
    probes = probe_fitted(networks, schedule, context.samples, on_evaluation)
    probes.save(folder / PROBES)


def make_times(context: BuildContext, graphs: Mapping[str, Path], folder: Path, reporter: Reporter) -> None:
    """Write `times.json`, milliseconds per step by precision. A resumed build reuses the times, so that it chooses the same chain."""
    (folder / TIMES).write_text(json.dumps(time_engines(context, graphs, reporter)))


def make_choice(
    context: BuildContext,
    graphs: Mapping[str, Path],
    walked: Path,
    probed: Path,
    costs: Mapping[str, float],
    folder: Path,
    reporter: Reporter,
) -> None:
    """Write `choice.json`, and `frontier.json` over bit operations with real chains to compare the predictions with."""
    assert context.plan.steps.budget is not None
    schedule, probes = _schedule(walked), Probes.load(probed / PROBES)
    chosen = choose(Menu.of(probes, costs), context.plan.steps.budget)
    (folder / CHOICE).write_text(json.dumps(chosen))
    menu = Menu.of(probes, bit_operation_costs(context, graphs))
    chains = [*_chains(menu, _chosen_by(schedule), chosen), *_mixtures(menu)]
    measured: dict[Choice, MeasuredError] = {}
    checked = _chains_to_measure(chains)
    errors = _chain_errors(context, graphs, schedule, each(reporter, (len(checked) + 1) * len(schedule.steps)))
    for choice in checked:
        measured[choice] = MeasuredError.of(errors.measure(with_precisions(schedule, choice)))
    found = Frontier("bit_operations", menu, probes, chains, measured, CHECKED_SAMPLES)
    (folder / FRONTIER).write_text(found.to_json())


def write_time_frontier(context: BuildContext, output: Path, chosen: Chosen, times: Mapping[str, float]) -> None:
    """Write `local/<machine>/frontier.json`, over milliseconds measured on this machine."""
    probes = Probes.load(chosen.probes / PROBES)
    menu = Menu.of(probes, time_costs(context, times))
    measured, samples = measured_of(json.loads((chosen.folder / FRONTIER).read_text()))
    chains = list(_chains(menu, _chosen_by(_schedule(chosen.walked)), chosen.precisions))
    found = Frontier("time", menu, probes, chains, measured, samples)
    write_text(output / "local" / machine_name() / FRONTIER, found.to_json())


def bit_operation_costs(context: BuildContext, graphs: Mapping[str, Path]) -> dict[str, float]:
    """Return the bit operations of the whole network relative to full precision, by candidate."""
    return {precision.name: _bit_operations(graphs[precision.name], precision.name) for precision in context.precisions}


def time_costs(context: BuildContext, times: Mapping[str, float]) -> dict[str, float]:
    """Return the measured time of a step relative to full precision, by candidate."""
    return {precision.name: times[precision.name] / times[FULL_PRECISION] for precision in context.precisions}


def _bit_operations(folder: Path, name: str) -> float:
    if name == FULL_PRECISION:
        return 1.0
    return 1 / float(json.loads((folder / "precision.json").read_text())["bit_operations"]["all_saved"])


def _schedule(walked: Path) -> Schedule:
    return Schedule.model_validate_json(schedule_path(walked).read_text())


def _chosen_by(schedule: Schedule) -> Choice:
    """Return the precisions that the schedule itself chose."""
    return tuple(step.precision for step in schedule.steps)


def _chains(menu: Menu, snr: Choice, chosen: Choice) -> Iterator[tuple[Kind, Choice]]:
    """Yield the chains of a frontier file: chains to compare with, the chosen chain, and the frontier itself."""
    for name in menu.precisions:
        yield "uniform", (name,) * len(menu.amplitudes)
    yield "snr", snr
    yield "budget", chosen
    for choice in frontier(menu, FRONTIER_POINTS):
        yield "frontier", choice


def _mixtures(menu: Menu) -> Iterator[tuple[Kind, Choice]]:
    """Yield random chains, each with random shares of the precisions. The seed is fixed."""
    rng, steps = np.random.default_rng(0), len(menu.amplitudes)
    for _ in range(MIXTURES):
        shares = rng.dirichlet(np.ones(len(menu.precisions)))
        yield "mixture", tuple(rng.choice(menu.precisions, steps, p=shares).tolist())


def _chains_to_measure(chains: Sequence[tuple[Kind, Choice]]) -> list[Choice]:
    """Return the chains to measure: `CHECKED_POINTS` of the frontier, and all others."""
    optimal = [choice for kind, choice in chains if kind == "frontier"]
    some = np.unique(np.linspace(0, len(optimal) - 1, CHECKED_POINTS).round().astype(np.int64)).tolist()
    return list(dict.fromkeys([*(choice for kind, choice in chains if kind != "frontier"), *(optimal[i] for i in some)]))


def most_measured(precisions: int) -> int:
    """Return the largest number of chains to measure, for this many candidates."""
    return precisions + len(("snr", "budget")) + CHECKED_POINTS + MIXTURES


def _chain_errors(context: BuildContext, graphs: Mapping[str, Path], schedule: Schedule, on_evaluation: Callable[[], None]) -> ChainErrors:
    samples = context.samples.first(PROBED_SAMPLES + CHECKED_SAMPLES)
    return ChainErrors(
        exact=with_precisions(schedule, (FULL_PRECISION,) * len(schedule.steps)),
        networks=fit_networks(context, graphs, CHECKED_SAMPLES).telling(on_evaluation).networks,
        noise=samples.noise,
        rows=samples.rows,
        samples=np.arange(PROBED_SAMPLES, PROBED_SAMPLES + CHECKED_SAMPLES, dtype=np.int64),
        batch_size=CHECKED_SAMPLES,
    )
