"""What `ptqd-run evaluate` found, and what its `--json` file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engines.apps.evaluate.metrics.confidence import Estimate, Summary, summarize


@dataclass(frozen=True)
class Figure:
    """One figure of both chains.

    Attributes:
        full_precision: of full precision; None for paired figures, which compare with it.
        quantized: of the chain asked for.
        difference: quantized less full precision, paired by noise; None for paired figures.
    """

    full_precision: Summary | None
    quantized: Summary
    difference: Summary | None


@dataclass(frozen=True)
class EvaluationResult:
    """A chain of a bundle against full precision and a reference.

    Attributes:
        schedule: its name.
        full_precision: the precision that the chain was held against.
        precision: what was asked for: `auto`, or one precision.
        precision_steps: steps of the chain that each precision took.
        correction: whether outputs were corrected.
        guidance: scale of classifier-free guidance.
        num: samples of every seed.
        seeds: of the noise.
        classes: rows that the samples cycled through; None where each was drawn from its seed, or the model is unconditional.
        reference_count: images behind the reference; None where unknown.
        extractor: sha256 of the feature extractor.
        feature_dimension: of its features.
        figures: by name.
        unavailable: figures that could not be had, each with the reason.
        warnings: what to know before the figures are quoted.
    """

    schedule: str
    full_precision: str
    precision: str
    precision_steps: Mapping[str, int]
    correction: Literal["on", "off"]
    guidance: float
    num: int
    seeds: tuple[int, ...]
    classes: tuple[int, ...] | Literal["all"] | None
    reference_count: int | None
    extractor: str
    feature_dimension: int
    figures: Mapping[str, Figure]
    unavailable: Mapping[str, str]
    warnings: tuple[str, ...]
    schema_version: Literal[1] = 1


def compare(both: Sequence[tuple[Mapping[str, Estimate], Mapping[str, Estimate]]]) -> dict[str, Figure]:
    """Figures by name from the estimates (full precision's, the quantized chain's) of every seed."""
    (_, names), *_ = both
    return {name: _figure([first.get(name) for first, _ in both], [second[name] for _, second in both]) for name in names}


def _figure(full_precision: Sequence[Estimate | None], quantized: Sequence[Estimate]) -> Figure:
    known = [estimate for estimate in full_precision if estimate is not None]
    if not known:
        return Figure(None, summarize(quantized), None)
    return Figure(summarize(known), summarize(quantized), summarize([q - f for q, f in zip(quantized, known, strict=True)]))
