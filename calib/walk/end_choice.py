"""Chooses corrections by where chains end: the mode `auto`.

A step's own figures do not tell which correction is best for the end sample. An attenuation adds up along the chain and a residual
averages out, and how much of each the later steps undo belongs to the chain. So every proposal takes held-out samples, which the statistics
never saw, down whole chains, and the one that ends nearest to full precision's is chosen; see `calib.walk.race`. What ends is the picture:
an error of latents says little about that of the picture that is decoded from them. Where the nearest is not clearly nearer than no
correction or the paper's, that one is taken: the least of several errors that are roughly known is too low.

A precision's correction is chosen on a chain of this precision alone, although it was fitted on the states of the policy's chain. If
the policy mixes precisions, the mixed chain is judged too, where the proposals are each precision's own choice, no correction, the paper's,
and what the walk took. In a chain whose steps reuse features, every proposal is judged: none of its networks has a chain of its own.

From 64 samples on, the choice takes at most `SHARE` of the network evaluations of the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from calib.correction.step_fit import CorrectionChoice
from calib.walk.chain_error import ChainErrors, with_precisions
from calib.walk.fit import FitNetworks, FitSettings, FittedChain
from calib.walk.fitted_schedule import record_of
from calib.walk.race import Behind, Contender, Race, race
from engines.arrays import Float64
from engines.chain.finite import NotFiniteError
from engines.chain.schedule import Correction, CorrectionRecord, JudgedCorrection, Schedule

ROUNDS, LEAST_ROUND, MOST_ROUND = 8, 2, 8
"""Most rounds of a race, and limits of their samples; see `round_size`."""

SHARE = 0.45
"""Most network evaluations of the full-precision chain beside the walk and of all races, as a share of the walk's own. The first round of
every race runs in any case.
"""

ALWAYS = ("none", "ptqd")
"""Modes that are proposed for the chain that the policy chose, whatever the precisions' own chains say."""

CLEARLY = 0.5
"""Standard errors by which a chain must end nearer than those of `ALWAYS` to be chosen before them."""

_ROUNDING, _DIVERGED = 1e-20, 1e20
"""Mean square errors that stand for float rounding, and for a chain whose network returned NaN or infinity."""


def choose_by_end(networks: FitNetworks, fitted: FittedChain, on_evaluation: Callable[[], None] = lambda: None) -> FittedChain:
    """Return the chain with the corrections whose held-out chains end nearest to full precision's, and with the evidence.

    Args:
        networks: networks of this process that take batches of `round_size` samples.
        fitted: chain whose results have the proposals.
        on_evaluation: called after every batch of every network; see `end_evaluations`.
    """
    judge = _Judge(networks.telling(on_evaluation), fitted)
    races = {name: judge.race(judge.alone(name)) for name in judge.precisions}
    own = fitted.corrected_by({name: chosen_of(found) for name, found in races.items()})
    judged = [one for name, found in races.items() for one in _evidence(name, found, _record)]
    if not judge.is_mixed:
        return replace(own, judged=tuple(judged))
    together, record = judge.race(judge.mixed(own.schedule)), fitted.schedule.correction
    judged += _evidence(None, together, lambda choice: record if choice is None else _record(choice))
    return replace(own, mixed=chosen_of(together), judged=tuple(judged))


def round_size(settings: FitSettings) -> int:
    """Return the number of samples of a round. With few calibration samples, first rounds alone would take longer than the walk."""
    return min(max(settings.samples.count // 16, LEAST_ROUND), MOST_ROUND)


def end_evaluations(settings: FitSettings, networks: int) -> int:
    """Return about how often `choose_by_end` runs a network on a batch of `round_size` samples: most often less.

    Args:
        settings: settings of the fit.
        networks: number of networks, with full precision.
    """
    if not settings.proposals:
        return 0
    first = networks * (1 + len({_kin(choice) for choice in settings.proposals}))
    return settings.table.steps * max(int(_allowance(settings, networks)), first + 1)


def _allowance(settings: FitSettings, networks: int) -> float:
    """Return how many rounds of a contender all races may take, full precision included, which takes those of the longest race."""
    samples = SHARE * networks * settings.samples.count - settings.paired
    return max(samples / round_size(settings), 0.0)


@dataclass(frozen=True, eq=False)
class _Judge:
    """Runs the races of a fitted chain."""

    networks: FitNetworks
    fitted: FittedChain

    @cached_property
    def schedule(self) -> Schedule:
        return self.fitted.schedule

    @property
    def precisions(self) -> list[str]:
        """The quantized precisions to judge on chains of their own: none if the corrections were fitted for shifted steps."""
        return [] if self.schedule.is_shifted else [name for name in self.schedule.precisions if name != self.networks.reference]

    @property
    def is_mixed(self) -> bool:
        """Whether the policy's own chain is none of the chains of one precision."""
        return self.schedule.is_shifted or len({step.network for step in self.schedule.steps}) > 1

    @property
    def races(self) -> int:
        return max(len(self.precisions) + self.is_mixed, 1)

    @property
    def allowance(self) -> float:
        """Rounds that a race may take, summed over its contenders and its share of full precision."""
        return _allowance(self.fitted.settings, len(self.networks.networks)) / self.races

    @cached_property
    def _rounds(self) -> list[ChainErrors]:
        """The held-out samples of every round; those after the walk's own."""
        settings, size = self.fitted.settings, round_size(self.fitted.settings)
        first = settings.samples.count
        held_out = settings.samples.first(first + ROUNDS * size)
        exact = with_precisions(self.schedule, (self.networks.reference,) * len(self.schedule.steps))
        return [
            ChainErrors(exact, self.networks.networks, held_out.noise, held_out.rows, numbers, size, self.networks.pictured)
            for numbers in np.split(held_out.numbers[first:], ROUNDS)
        ]

    def alone(self, precision: str) -> dict[CorrectionChoice, Schedule]:
        """Return the distinct proposals for a chain of one precision. Only the walk's own chain has accumulated the error that was seen."""
        everywhere = (precision,) * len(self.schedule.steps)
        own = everywhere == tuple(step.network for step in self.schedule.steps)
        proposed = {choice: schedule for choice, schedule in self._proposed().items() if own or not choice.accumulates}
        return _distinct({choice: with_precisions(schedule, everywhere) for choice, schedule in proposed.items()})

    def mixed(self, own: Schedule) -> dict[CorrectionChoice | None, Schedule]:
        """Return the distinct proposals for the chain that the policy chose; under None, each precision's own choice."""
        chains: dict[CorrectionChoice | None, Schedule] = {None: own}
        chains.update(self._proposed().items())
        chains = _distinct(chains)
        if not self.precisions or self.schedule.cut is not None:
            return chains
        walked = self.fitted.settings.correction
        return {
            choice: chains[choice]
            for choice in map(_leader, _families(chains))
            if choice is None or choice.mode in ALWAYS or choice == walked
        }

    def _proposed(self) -> dict[CorrectionChoice, Schedule]:
        names = self.schedule.networks
        return {choice: self.fitted.corrected_by(dict.fromkeys(names, choice)).schedule for choice in self.fitted.proposals}

    def race(self, chains: Mapping[Contender, Schedule]) -> Race[Contender]:
        families = {_leader(family): family for family in _families(chains)}

        def relatives(leader: Contender) -> Iterable[Contender]:
            return (other for other in families[leader] if other != leader)

        return race(
            [*families], lambda choice, number: self._errors(chains[choice], number), ROUNDS, self.allowance, 1 / self.races, relatives
        )

    def _errors(self, chain: Schedule, number: int) -> Float64:
        """Return the errors of a chain's samples of a round, in dB."""
        try:
            errors = self._rounds[number].measure(chain)
        except NotFiniteError:
            errors = np.full(round_size(self.fitted.settings), _DIVERGED)
        return 10 * np.log10(np.clip(errors, _ROUNDING, _DIVERGED))


def chosen_of(found: Race[Contender]) -> Contender:
    """Return the winner of a race or, if it did not end clearly nearer than no correction or the paper's, the nearest of these."""
    plain = [choice for choice in found.errors if _is_plain(choice) and not found.is_beaten(choice)]
    leads = {choice: Behind.of(found.errors[choice], found.errors[found.winner]) for choice in plain}
    close = {choice: behind.mean for choice, behind in leads.items() if behind.mean <= CLEARLY * behind.standard_error}
    return min(close, key=lambda choice: close[choice], default=found.winner)


def _is_plain(choice: Hashable) -> bool:
    return isinstance(choice, CorrectionChoice) and choice.mode in ALWAYS


def _kin(choice: Hashable) -> Hashable:
    """Return what proposals have in common that differ in the variance schedule alone."""
    return replace(choice, variance="none") if isinstance(choice, CorrectionChoice) else choice


def _families(choices: Iterable[Contender]) -> list[list[Contender]]:
    """Return the proposals that are kin, together."""
    found = dict[Hashable, list[Contender]]()
    for choice in choices:
        found.setdefault(_kin(choice), []).append(choice)
    return [*found.values()]


def _leader(family: Sequence[Contender]) -> Contender:
    """Return who races first: no correction without a variance schedule, every other with it."""
    choice = family[0]
    return choice if isinstance(choice, CorrectionChoice) and choice.mode == "none" else family[-1]


def _distinct(chains: Mapping[Contender, Schedule]) -> dict[Contender, Schedule]:
    """Return the first of the chains that take the same steps; without fresh noise, a variance schedule changes nothing."""
    found = dict[tuple[tuple[object, ...], ...], Contender]()
    for choice, chain in chains.items():
        found.setdefault(tuple(_taken(step.chosen_correction) for step in chain.steps), choice)
    return {choice: chains[choice] for choice in found.values()}


def _taken(correction: Correction) -> tuple[object, ...]:
    return correction.gain, correction.offset, correction.state_gain, correction.sigma_corrected


def _evidence(chain: str | None, found: Race[Contender], record: Callable[[Contender], CorrectionRecord]) -> Iterator[JudgedCorrection]:
    """Yield how every proposal for a chain did, in the order of the proposals."""
    chosen = chosen_of(found)
    for choice, errors in found.errors.items():
        behind = Behind.of(errors, found.errors[chosen])
        yield JudgedCorrection(
            chain=chain,
            correction=record(choice),
            samples=behind.samples,
            error_db=float(errors.mean()),
            behind_db=behind.mean,
            standard_error_db=behind.standard_error,
            chosen=choice == chosen,
        )


def _record(choice: CorrectionChoice) -> CorrectionRecord:
    return record_of(choice.mode, choice.variance, choice.parts)
