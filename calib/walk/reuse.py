"""Which steps of a walk reuse deep features of an earlier step, and where the networks are cut; see `engines.chain.features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from calib.walk.policy import FittedStep, Policy
from engines.arrays import Float64
from engines.chain.features import cut_name, precision_and_cut

T = TypeVar("T")


@dataclass(frozen=True)
class ReuseSteps:
    """The steps that reuse features, always those of the last step that did not.

    Attributes:
        cut: where the networks are cut.
        steps: indices of the steps, without 0.
        precisions: precisions that may take the steps of the chain.
        weights: weight with which a step extrapolates features, by step; see `engines.chain.features.extrapolated`.
    """

    cut: str
    steps: frozenset[int]
    precisions: tuple[str, ...]
    weights: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, networks: Sequence[str]) -> ReuseSteps | None:
        """Return the steps of a chain that reuse features, given the network of each step; None if no step does."""
        split = [precision_and_cut(name) for name in networks]
        cuts = {step: cut for step, (_, cut) in enumerate(split) if cut is not None}
        if not cuts:
            return None
        (cut,) = set(cuts.values())
        return cls(cut, frozenset(cuts), tuple(dict.fromkeys(precision for precision, _ in split)))

    def extrapolating(self, timesteps: Sequence[float] | Float64) -> ReuseSteps:
        """Return the same steps, which take features to be linear in the timestep, through those of the last two steps that computed them
        (compare TaylorSeer, arXiv 2503.06923). A step with only one such step before it takes its features.

        Args:
            timesteps: [S] timestep of each step.
        """
        pairs = {step: self._computed(step) for step in sorted(self.steps)}
        ends = {step: (timesteps[pair[0]], timesteps[pair[1]]) for step, pair in pairs.items() if len(pair) == 2}
        weights = {step: (last - timesteps[step]) / (earlier - last) for step, (earlier, last) in ends.items() if earlier > last}
        return replace(self, weights={step: float(weight) for step, weight in weights.items()})

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks at the cut."""
        return tuple(cut_name(precision, self.cut) for precision in self.precisions)

    @property
    def keeping(self) -> frozenset[int]:
        """Indices of the steps whose features a later step reuses."""
        if self.weights:
            return frozenset(kept for step in self.steps for kept in self._computed(step))
        return frozenset(step - 1 for step in self.steps) - self.steps

    def _computed(self, step: int) -> list[int]:
        """Return the last two steps before a step that compute everything, or the only one."""
        return [before for before in range(step) if before not in self.steps][-2:]

    def policy(self, choose: Policy) -> Policy:
        """Return the policy that chooses the precision of these steps among their networks at the cut, and of others as before."""
        return _ReusePolicy(choose, self)


@dataclass(frozen=True)
class _ReusePolicy:
    choose: Policy
    reuse: ReuseSteps

    def __call__(self, fitted: FittedStep) -> str:
        if fitted.step not in self.reuse.steps:
            return self.choose(fitted)
        at_cut = replace(fitted, moments=_by_precision(fitted.moments), affines=_by_precision(fitted.affines))
        return cut_name(self.choose(at_cut), self.reuse.cut)


def _by_precision(found: Mapping[str, T]) -> dict[str, T]:
    """Return what belongs to the networks at the cut, by precision."""
    split = ((precision_and_cut(name), value) for name, value in found.items())
    return {precision: value for (precision, cut), value in split if cut is not None}
