"""Which steps of a walk reuse deep features of an earlier step, and where the networks are cut; see `engines.chain.features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from calib.walk.policy import FittedStep, Policy
from engines.chain.features import cut_name, precision_and_cut

T = TypeVar("T")


@dataclass(frozen=True)
class ReuseSteps:
    """The steps that reuse features, always those of the last step that did not.

    Attributes:
        cut: where the networks are cut.
        steps: indices of the steps, without 0.
        precisions: precisions that may take the steps of the chain.
    """

    cut: str
    steps: frozenset[int]
    precisions: tuple[str, ...]

    @classmethod
    def of(cls, networks: Sequence[str]) -> ReuseSteps | None:
        """Return the steps of a chain that reuse features, given the network of each step; None if no step does."""
        split = [precision_and_cut(name) for name in networks]
        cuts = {step: cut for step, (_, cut) in enumerate(split) if cut is not None}
        if not cuts:
            return None
        (cut,) = set(cuts.values())
        return cls(cut, frozenset(cuts), tuple(dict.fromkeys(precision for precision, _ in split)))

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks at the cut."""
        return tuple(cut_name(precision, self.cut) for precision in self.precisions)

    @property
    def keeping(self) -> frozenset[int]:
        """Indices of the steps whose features a later step reuses."""
        return frozenset(step - 1 for step in self.steps) - self.steps

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
