"""A stored row of the ablation, and comparisons of two rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from engines.apps.evaluate.metrics.confidence import Estimate, Summary, summarize
from engines.apps.evaluate.scores import FRECHET_DISTANCE, OVER_SEEDS
from ptqd_export.plan import FULL_PRECISION


@dataclass(frozen=True)
class Result:
    """Result of one chain.

    Attributes:
        label: label of the correction, or of the policy of a mixed chain.
        precision: precision of all steps, or None for a mixture.
        setting: name of the setting.
        steps: precision of every step.
        num: samples per seed.
        figures: figures by name, one estimate per seed.
    """

    label: str
    precision: str | None
    setting: str
    steps: tuple[str, ...]
    num: int
    figures: Mapping[str, Sequence[Estimate]]

    @classmethod
    def load(cls, path: Path) -> Result:
        stored: dict[str, Any] = json.loads(path.read_text())
        row = stored["row"]
        figures = {name: [_estimate(one) for one in of_seeds] for name, of_seeds in stored["figures"].items()}
        return cls(row["label"], row["precision"], row["setting"], tuple(stored["steps"]), stored["num"], figures)

    @property
    def is_full_precision(self) -> bool:
        return self.precision == FULL_PRECISION

    def summary(self, name: str) -> Summary:
        """Summarize a figure over the seeds."""
        return summarize(self.figures[name], OVER_SEEDS.get(name, fmean))

    def difference(self, other: Result, name: str) -> Summary:
        """Summarize the figure minus that of another row, paired by noise."""
        return summarize([mine - its for mine, its in zip(self.figures[name], other.figures[name], strict=True)])

    def ratio(self, other: Result, name: str) -> float:
        """Mean over the seeds of the figure divided by that of another row."""
        return fmean(mine.value / its.value for mine, its in zip(self.figures[name], other.figures[name], strict=True))

    def gap_closed(self, none: Result, reference: Result) -> float:
        """Share of the gap between the uncorrected chain (`none`) and full precision (`reference`) that the correction closes.

        The gap is the difference of their Frechet distances.
        """
        gap = none.difference(reference, FRECHET_DISTANCE).mean
        return 1 - self.difference(reference, FRECHET_DISTANCE).mean / gap


def _estimate(stored: Mapping[str, Any]) -> Estimate:
    return Estimate(stored["value"], np.array(stored["without_block"]))
