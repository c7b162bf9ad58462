"""Chooses corrections by where chains end: the mode `auto`.

A step's own figures do not tell which correction is best for the end sample. An attenuation adds up along the chain and a residual
averages out, and how much of each the later steps undo belongs to the chain. So every proposal takes held-out samples, which the statistics
never saw, down whole chains, and the one that ends nearest to full precision's is chosen; see `calib.walk.race`.

A precision's correction is chosen on a chain of this precision alone, although it was fitted on the states of the policy's chain. If
the policy mixes precisions, the mixed chain is judged too, where each precision's own choice is one more proposal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from calib.correction.step_fit import CorrectionChoice
from calib.walk.chain_error import ChainErrors, with_precisions
from calib.walk.fit import FitNetworks, FittedChain
from calib.walk.fitted_schedule import record_of
from calib.walk.race import Behind, Contender, Race, race
from engines.arrays import Float64
from engines.chain.finite import NotFiniteError
from engines.chain.schedule import Correction, CorrectionRecord, JudgedCorrection, Schedule

ROUND = 8
"""Samples of a round."""

ROUNDS = 8

SHARE = 0.5
"""Most network evaluations of all races, as a share of the walk's. The first round of every race runs in any case."""

_ROUNDING, _DIVERGED = 1e-20, 1e20
"""Mean square errors that stand for float rounding, and for a chain whose network returned NaN or infinity."""


def choose_by_end(networks: FitNetworks, fitted: FittedChain, on_evaluation: Callable[[], None] = lambda: None) -> FittedChain:
    """Return the chain with the corrections whose held-out chains end nearest to full precision's, and with the evidence.

    Args:
        networks: networks of this process that take batches of `ROUND` samples.
        fitted: chain whose results have the proposals.
        on_evaluation: called after every batch of every network; see `end_evaluations`.
    """
    judge = _Judge(networks.telling(on_evaluation), fitted)
    races = {name: judge.race(judge.alone(name)) for name in judge.precisions}
    own = fitted.corrected_by({name: found.winner for name, found in races.items()})
    judged = [one for name, found in races.items() for one in _evidence(name, found, _record)]
    if not judge.is_mixed:
        return replace(own, judged=tuple(judged))
    together, record = judge.race(judge.mixed(own.schedule)), fitted.schedule.correction
    judged += _evidence(None, together, lambda choice: record if choice is None else _record(choice))
    return replace(own, mixed=together.winner, judged=tuple(judged))


def end_evaluations(proposals: int, networks: int, steps: int, samples: int) -> int:
    """Return about how often `choose_by_end` runs a network on a batch of `ROUND` samples: most often less, if the chain is not mixed.

    Args:
        proposals: number of proposals; 0 if there is nothing to choose.
        networks: number of networks, with full precision.
        steps: steps of the chain.
        samples: samples of the walk.
    """
    if not proposals:
        return 0
    return steps * (max(int(SHARE * networks * samples / ROUND), proposals * (networks - 1)) + ROUNDS)


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
        return self.schedule.is_shifted or len({step.precision for step in self.schedule.steps}) > 1

    @property
    def allowance(self) -> int:
        """Rounds that a race may take, summed over its contenders."""
        samples, races = self.fitted.settings.samples.count, len(self.precisions) + self.is_mixed
        return int(SHARE * len(self.networks.networks) * samples / ROUND / max(races, 1))

    @cached_property
    def _rounds(self) -> list[ChainErrors]:
        """The held-out samples of every round; those after the walk's own."""
        settings = self.fitted.settings
        first = settings.samples.count
        held_out = settings.samples.first(first + ROUNDS * ROUND)
        exact = with_precisions(self.schedule, (self.networks.reference,) * len(self.schedule.steps))
        return [
            ChainErrors(exact, self.networks.networks, held_out.noise, held_out.rows, numbers, ROUND)
            for numbers in np.split(held_out.numbers[first:], ROUNDS)
        ]

    def alone(self, precision: str) -> dict[CorrectionChoice, Schedule]:
        """Return the distinct proposals for a chain of one precision. Only the walk's own chain has accumulated the error that was seen."""
        everywhere = (precision,) * len(self.schedule.steps)
        own = everywhere == tuple(step.precision for step in self.schedule.steps)
        proposed = {choice: schedule for choice, schedule in self._proposed().items() if own or not choice.accumulates}
        return _distinct({choice: with_precisions(schedule, everywhere) for choice, schedule in proposed.items()})

    def mixed(self, own: Schedule) -> dict[CorrectionChoice | None, Schedule]:
        """Return the distinct proposals for the chain that the policy chose; under None, each precision's own choice."""
        chains: dict[CorrectionChoice | None, Schedule] = {None: own}
        chains.update(self._proposed().items())
        return _distinct(chains)

    def _proposed(self) -> dict[CorrectionChoice, Schedule]:
        names = self.schedule.precisions
        return {choice: self.fitted.corrected_by(dict.fromkeys(names, choice)).schedule for choice in self.fitted.proposals}

    def race(self, chains: Mapping[Contender, Schedule]) -> Race[Contender]:
        return race([*chains], lambda choice, number: self._errors(chains[choice], number), ROUNDS, self.allowance)

    def _errors(self, chain: Schedule, number: int) -> Float64:
        """Return the errors of a chain's samples of a round, in dB."""
        try:
            errors = self._rounds[number].measure(chain)
        except NotFiniteError:
            errors = np.full(ROUND, _DIVERGED)
        return 10 * np.log10(np.clip(errors, _ROUNDING, _DIVERGED))


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
    for choice, errors in found.errors.items():
        behind = Behind.of(errors, found.errors[found.winner])
        yield JudgedCorrection(
            chain=chain,
            correction=record(choice),
            samples=behind.samples,
            error_db=float(errors.mean()),
            behind_db=behind.mean,
            standard_error_db=behind.standard_error,
            chosen=choice == found.winner,
        )


def _record(choice: CorrectionChoice) -> CorrectionRecord:
    return record_of(choice.mode, choice.variance, choice.parts)
