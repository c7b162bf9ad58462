"""The policy `budget`: the stages `probes`, `aging`, `times` and `choice`, and the frontier of chains.

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
from calib.walk.fewer_steps import fewer_steps
from calib.walk.fit import PROBED_SAMPLES, probe_evaluations, probe_fitted
from calib.walk.reuse_errors import AgedFeatures, ReusePlan, aged_features, end_amplitudes, reuse_evaluations
from calib.walk.sensitivity import Probes
from engines.chain.features import cut_name, precision_and_cut
from engines.chain.schedule import Schedule
from engines.host.files import write_text
from engines.host.machine import machine_name
from ptqd_export.plan.published_times import PUBLISHED
from ptqd_export.records.frontier_file import FRONTIERS, Choice, CostUnit, Frontier, Kind, MeasuredError, RealChains
from ptqd_export.records.times_file import TIMES, without_gain
from ptqd_export.stages.build_context import FULL_PRECISION, BuildContext, schedule_path, stored_cuts
from ptqd_export.stages.fit.fit_inputs import fit_networks, fit_settings
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
AGING = "aging.npz"


@dataclass(frozen=True)
class Probed:
    """Folders of what a choice is based on.

    Attributes:
        probes: folder of the stage `probes`.
        aging: folder of the stage `aging`; None if no step may reuse features.
        at_cut: names of the networks that may reuse them.
    """

    probes: Path
    aging: Path | None = None
    at_cut: tuple[str, ...] = ()

    @property
    def found(self) -> Probes:
        return Probes.load(self.probes / PROBES)

    def menu(self, costs: Mapping[str, float]) -> Menu:
        """Return the menu of all candidates at these costs, by candidate."""
        probes = self.found
        menu = Menu.of(probes, {name: cost for name, cost in costs.items() if name not in self.at_cut})
        if self.aging is None:
            return menu
        errors = AgedFeatures.load(self.aging / AGING).errors
        return menu.reusing(self.at_cut, end_amplitudes(errors, probes), [costs[name] for name in self.at_cut])

    def chain(self, schedule: Schedule, choice: Choice) -> Schedule:
        """Return the schedule of the walk with this chain; see `AgedFeatures.chain`."""
        if self.aging is None:
            return with_precisions(schedule, choice)
        return AgedFeatures.load(self.aging / AGING).chain(schedule, self.at_cut, choice)


@dataclass(frozen=True)
class Chosen:
    """The chain that the budget buys.

    Attributes:
        networks: one network per step, a precision or one at the cut.
        walked: folder of the walk that the choice is based on.
        probed: what the choice is based on.
        folder: folder of the stage `choice`, with `frontier.json`.
        times: milliseconds per step by precision, measured on this machine; None if the target's engines do not run here.
    """

    networks: Choice
    walked: Path
    probed: Probed
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
    at_cut = _reusing(context, times or {})
    costs = candidate_costs(context, graphs, _counted(context, times), at_cut)
    assert steps.budget is not None
    if not at_cut:
        check_budget(costs, steps.budget)
    inputs = {"walked": walked.name, "graphs": names}
    probed = Probed(cache.run("probes", inputs, partial(make_probes, context, graphs, walked)))
    if at_cut:
        aged = {"graphs": names, "networks": at_cut, **context.plan.model_dump(include={"sampler", "calibration", "correction"})}
        probed = Probed(probed.probes, cache.run("aging", aged, partial(make_aging, context, graphs, at_cut)), at_cut)
    wanted = {"probes": probed.probes.name, "budget": steps.budget, "costs": costs}
    wanted |= {} if probed.aging is None else {"aging": probed.aging.name}
    folder = cache.run("choice", wanted, partial(make_choice, context, graphs, walked, probed, costs))
    return Chosen(tuple(json.loads((folder / CHOICE).read_text())), walked, probed, folder, times)


def _counted(context: BuildContext, times: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """Return the times that the budget counts: measured ones or, for engines that do not run here, published ones in units of float16's.
    None if it counts bit operations.
    """
    if context.plan.steps.cost != "time":
        return None
    return times or {FULL_PRECISION: 1.0, **{name: one.share for name, one in PUBLISHED.items()}}


def _reusing(context: BuildContext, times: Mapping[str, float]) -> tuple[str, ...]:
    """Return the networks that may reuse features, without those that save no time on this machine."""
    cut = context.cut
    names = () if cut is None else tuple(cut_name(precision.name, cut) for precision in context.precisions)
    return tuple(name for name in names if name not in without_gain(times))


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


def make_aging(context: BuildContext, graphs: Mapping[str, Path], at_cut: tuple[str, ...], folder: Path, reporter: Reporter) -> None:
    """Write `aging.npz`, the errors and corrections of features by step, age and network; see `AgedFeatures`."""
    plan = ReusePlan.of(fit_networks(context, graphs, PROBED_SAMPLES, at_cut), fit_settings(context).undecided, at_cut)
    aged_features(plan, each(reporter, reuse_evaluations(len(at_cut), plan.table.steps))).save(folder / AGING)


def make_times(context: BuildContext, graphs: Mapping[str, Path], folder: Path, reporter: Reporter) -> None:
    """Write `times.json`, milliseconds per step by precision. A resumed build reuses the times, so that it chooses the same chain."""
    (folder / TIMES).write_text(json.dumps(time_engines(context, graphs, reporter)))


def make_choice(
    context: BuildContext,
    graphs: Mapping[str, Path],
    walked: Path,
    probed: Probed,
    costs: Mapping[str, float],
    folder: Path,
    reporter: Reporter,
) -> None:
    """Write `choice.json`, and `frontier.json` with real chains to compare the predictions with: over bit operations, or over published
    times where the budget counts these.
    """
    assert context.plan.steps.budget is not None
    schedule = _schedule(walked)
    chosen = choose(probed.menu(costs), context.plan.steps.budget)
    (folder / CHOICE).write_text(json.dumps(chosen))
    published = context.plan.steps.cost == "time" and not context.is_timed
    menu = probed.menu(costs if published else candidate_costs(context, graphs, None, probed.at_cut))
    chains = [*_chains(menu, _chosen_by(schedule), chosen), *_mixtures(menu)]
    checked = {choice: probed.chain(schedule, choice) for choice in _chains_to_measure(chains)}
    shorter = fewer_steps(schedule, context.noise_schedule, dict.fromkeys((*menu.whole, FULL_PRECISION)))
    taken = sum(len(chain.steps) for chain in (schedule, *checked.values(), *shorter.values()))
    at_cut = tuple(cut_name(name, str(context.cut)) for name in menu.whole) if probed.at_cut else ()
    errors = _chain_errors(context, graphs, schedule, at_cut, each(reporter, taken))
    measured = {choice: MeasuredError.of(errors.measure(chain)) for choice, chain in checked.items()}
    fewer = {one: MeasuredError.of(errors.measure(chain)) for one, chain in shorter.items()}
    sources = {name: PUBLISHED[name].source for name in menu.whole} if published else {}
    unit: CostUnit = "published_time" if published else "bit_operations"
    found = Frontier(unit, menu, probed.found, chains, measured, CHECKED_SAMPLES, fewer, sources)
    (folder / FRONTIER).write_text(found.to_json())


def write_time_frontier(
    context: BuildContext, output: Path, chosen: Chosen, graphs: Mapping[str, Path], times: Mapping[str, float]
) -> None:
    """Write `local/<machine>/frontier.json`, over milliseconds measured on this machine."""
    menu = chosen.probed.menu(candidate_costs(context, graphs, times, chosen.probed.at_cut))
    real = RealChains.of(json.loads((chosen.folder / FRONTIER).read_text()))
    chains = list(_chains(menu, _chosen_by(_schedule(chosen.walked)), chosen.networks))
    found = Frontier("time", menu, chosen.probed.found, chains, real.measured, real.samples, real.fewer)
    write_text(output / "local" / machine_name() / FRONTIER, found.to_json())


def candidate_costs(
    context: BuildContext, graphs: Mapping[str, Path], times: Mapping[str, float] | None, at_cut: Sequence[str]
) -> dict[str, float]:
    """Return the cost of a step relative to full precision, by candidate: the precisions, and then the networks at a cut.

    Args:
        context: context of the build.
        graphs: folders of the graphs, by precision.
        times: times of a step in any unit, if they are the cost; None for the bit operations of the whole network.
        at_cut: names of the networks at a cut.
    """
    names = (*(precision.name for precision in context.precisions), *at_cut)
    return {name: _bit_operations(graphs, name) if times is None else times[name] / times[FULL_PRECISION] for name in names}


def _bit_operations(graphs: Mapping[str, Path], name: str) -> float:
    precision, cut = precision_and_cut(name)
    if cut is not None:
        return 1 / float(stored_cuts(graphs[precision])[cut]["bit_operations_saved_all"])
    if precision == FULL_PRECISION:
        return 1.0
    return 1 / float(json.loads((graphs[precision] / "precision.json").read_text())["bit_operations"]["all_saved"])


def _schedule(walked: Path) -> Schedule:
    return Schedule.model_validate_json(schedule_path(walked).read_text())


def _chosen_by(schedule: Schedule) -> Choice:
    """Return the precisions that the schedule itself chose."""
    return tuple(step.precision for step in schedule.steps)


def _chains(menu: Menu, snr: Choice, chosen: Choice) -> Iterator[tuple[Kind, Choice]]:
    """Yield the chains of a frontier file: chains to compare with, the chosen chain, and the frontier itself; where steps may reuse
    features, also the frontiers of precisions alone and of each precision's own steps with and without reuse.
    """
    for name in menu.whole:
        yield "uniform", (name,) * len(menu.amplitudes)
    yield "snr", snr
    yield "budget", chosen
    for choice in frontier(menu, FRONTIER_POINTS):
        yield "frontier", choice
    if menu.ages:
        for choice in frontier(menu.only(menu.whole), FRONTIER_POINTS):
            yield "precisions", choice
        for name in menu.whole:
            own = menu.only(one for one in menu.precisions if precision_and_cut(one)[0] == name)
            yield from (("reuse", choice) for choice in (frontier(own, FRONTIER_POINTS) if own.ages else ()))


def _mixtures(menu: Menu) -> Iterator[tuple[Kind, Choice]]:
    """Yield random chains, each with random shares of the precisions. The seed is fixed."""
    rng, steps = np.random.default_rng(0), len(menu.amplitudes)
    for _ in range(MIXTURES):
        shares = rng.dirichlet(np.ones(len(menu.whole)))
        yield "mixture", tuple(rng.choice(menu.whole, steps, p=shares).tolist())


def _chains_to_measure(chains: Sequence[tuple[Kind, Choice]]) -> list[Choice]:
    """Return the chains to measure: `CHECKED_POINTS` of each frontier, and all others."""
    found = [choice for kind, choice in chains if kind not in FRONTIERS]
    for frontier_of in FRONTIERS:
        optimal = [choice for kind, choice in chains if kind == frontier_of]
        some = np.unique(np.linspace(0, len(optimal) - 1, CHECKED_POINTS).round().astype(np.int64)).tolist() if optimal else []
        found += [optimal[i] for i in some]
    return [*dict.fromkeys(found)]


def most_measured(precisions: int) -> int:
    """Return the largest number of chains to measure, for this many candidates. Two of fewer steps count as one."""
    return precisions + len(("snr", "budget")) + len(FRONTIERS) * CHECKED_POINTS + MIXTURES + precisions + 1


def _chain_errors(
    context: BuildContext, graphs: Mapping[str, Path], schedule: Schedule, at_cut: Sequence[str], on_evaluation: Callable[[], None]
) -> ChainErrors:
    samples = context.samples.first(PROBED_SAMPLES + CHECKED_SAMPLES)
    return ChainErrors(
        exact=with_precisions(schedule, (FULL_PRECISION,) * len(schedule.steps)),
        networks=fit_networks(context, graphs, CHECKED_SAMPLES, at_cut).telling(on_evaluation).networks,
        noise=samples.noise,
        rows=samples.rows,
        samples=np.arange(PROBED_SAMPLES, PROBED_SAMPLES + CHECKED_SAMPLES, dtype=np.int64),
        batch_size=CHECKED_SAMPLES,
    )
