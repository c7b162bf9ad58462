"""The contract of `frontier.json`: error against cost of chains, each a choice of one network per step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from calib.walk.budget import Menu
from calib.walk.cheapest_chain import predicted_error
from calib.walk.fewer_steps import FewerSteps
from calib.walk.reuse import ReuseSteps
from calib.walk.sensitivity import Probes, pooled
from engines.arrays import Float64

SCHEMA_VERSION = 1

Kind: TypeAlias = Literal["uniform", "snr", "budget", "frontier", "precisions", "reuse", "mixture"]
FRONTIERS: tuple[Kind, ...] = ("frontier", "precisions", "reuse")
"""Kinds of chains with the least predicted error at their cost: among all, without reuse of features, and of one precision with it."""

CostUnit: TypeAlias = Literal["bit_operations", "time", "published_time"]
"""What costs count: bit operations, milliseconds that were measured, or ratios of times that others published."""

Choice: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class MeasuredError:
    """End error of a real chain.

    Attributes:
        error: geometric mean over samples of their mean square difference from full precision.
        log_standard_error: standard error of the natural logarithm of `error`.
        mean_square: arithmetic mean over samples, dominated by the few samples that became a different image.
    """

    error: float
    log_standard_error: float
    mean_square: float

    @classmethod
    def of(cls, errors: Float64) -> MeasuredError:
        """Compute the error from the mean square differences of the samples, [N]."""
        exact = not errors.all()
        spread = 0.0 if exact else float(np.log(errors).std(ddof=1)) / len(errors) ** 0.5
        return cls(float(pooled(errors)), spread, float(errors.mean()))


@dataclass(frozen=True, eq=False)
class Frontier:
    """Chains with their costs and the errors that the probes predict.

    Attributes:
        cost: what the cost counts.
        menu: costs and amplitudes on which the choice was based.
        probes: predict the error of a chain.
        chains: chains with their kind; a chain may have several kinds.
        measured: errors of real chains, by choice.
        samples: number of samples that the real chains were measured on.
        fewer: errors of real chains of fewer steps.
        published: where the costs come from, by precision; empty unless they are published times.
    """

    cost: CostUnit
    menu: Menu
    probes: Probes
    chains: Sequence[tuple[Kind, Choice]]
    measured: Mapping[Choice, MeasuredError] = field(default_factory=dict)
    samples: int = 0
    fewer: Mapping[FewerSteps, MeasuredError] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the content of the whole file."""
        whole = self.menu.whole
        return {
            "schema_version": SCHEMA_VERSION,
            "cost": self.cost,
            "published": dict(self.published),
            "cost_a_step": dict(zip(self.menu.precisions, self.menu.costs.tolist(), strict=True)),
            "amplitudes": dict(zip(whole, self.menu.amplitudes.T.tolist(), strict=False)),
            "reused_amplitudes": self._reused(),
            "chains": [self._chain(kind, choice) for kind, choice in self.chains],
            "fewer_steps": [self._shorter(chain, found) for chain, found in self.fewer.items()],
            "probes": self._probes(),
            "prediction": self._prediction(),
        }

    def to_json(self) -> str:
        return json.dumps(self.record(), allow_nan=False) + "\n"

    def _chain(self, kind: Kind, choice: Choice) -> dict[str, Any]:
        found = self.measured.get(choice)
        return {
            "kind": kind,
            "precisions": list(choice),
            "cost": self.menu.cost_of(choice),
            "bound": self.menu.bound_of(choice),
            "predicted_error": predicted_error(self.menu, self.probes, choice),
            "measured": None if found is None else asdict(found),
        }

    def _shorter(self, chain: FewerSteps, found: MeasuredError) -> dict[str, Any]:
        steps = len(self.menu.amplitudes)
        cost = self.menu.cost_of((chain.precision,) * steps) if chain.precision in self.menu.whole else 1.0  # full precision, not listed
        return {**asdict(chain), "cost": cost * chain.steps / steps, "measured": asdict(found)}

    def _reused(self) -> dict[str, list[list[float]]]:
        """Return the amplitudes by network at the cut, age of the features from 1 on, and step."""
        found: dict[str, list[list[float]]] = {}
        for name, amplitudes in zip(
            self.menu.precisions[len(self.menu.whole) :], self.menu.amplitudes.T[len(self.menu.whole) :], strict=True
        ):
            found.setdefault(name, []).append(amplitudes.tolist())
        return found

    def _probes(self) -> dict[str, Any]:
        """Which steps were probed, and how far an interpolated amplitude is from the measured one at the step that was held out."""
        grid = self.probes.grid
        return {"steps": list(grid.probed), "held_out": grid.held_out, "interpolation_error_db": self.probes.interpolation_errors()}

    def _prediction(self) -> dict[str, Any]:
        """How well predictions agree with real chains, as correlations of the logarithms. Exact chains are left out. For chains that reuse
        features, whose prediction is an upper bound: how far above the real error it is.
        """
        from scipy.stats import pearsonr, spearmanr  # see `calib.walk.budget._solve`

        logs, reused = (self._logs(reuses=reuses) for reuses in (False, True))
        return {
            "samples": self.samples,
            "chains": len(logs),
            "pearson": float(pearsonr(*logs.T).statistic) if len(logs) > 2 else None,
            "spearman": float(spearmanr(*logs.T).statistic) if len(logs) > 2 else None,
            "reusing_chains": len(reused),
            "reusing_excess_db": float(10 / np.log(10) * (reused[:, 0] - reused[:, 1]).mean()) if len(reused) else None,
        }

    def _logs(self, *, reuses: bool) -> Float64:
        """Return the logarithms of the predicted and the real error, [n, 2], of chains with or without steps that reuse features."""
        chosen = ((choice, found) for choice, found in self.measured.items() if (ReuseSteps.of(choice) is not None) == reuses)
        pairs = [(predicted_error(self.menu, self.probes, choice), found.error) for choice, found in chosen]
        return np.asarray(np.log(np.array([pair for pair in pairs if all(pair)]).reshape(-1, 2)))


@dataclass(frozen=True)
class RealChains:
    """What a frontier file says of real chains, with the fields of `Frontier`."""

    measured: Mapping[Choice, MeasuredError]
    samples: int
    fewer: Mapping[FewerSteps, MeasuredError]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> RealChains:
        """Read the content of a frontier file."""
        chains = {tuple(chain["precisions"]): chain["measured"] for chain in record["chains"]}
        measured = {choice: MeasuredError(**found) for choice, found in chains.items() if found is not None}
        names = [field.name for field in fields(FewerSteps)]
        fewer = {FewerSteps(**{name: one[name] for name in names}): MeasuredError(**one["measured"]) for one in record["fewer_steps"]}
        return cls(measured, int(record["prediction"]["samples"]), fewer)
