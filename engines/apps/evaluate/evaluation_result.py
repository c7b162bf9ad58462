"""The result of `ptqd-run evaluate`. Its fields are those of the `--json` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from engines.apps.evaluate.metrics.confidence import Estimate, Summary, summarize


@dataclass(frozen=True)
class Figure:
    """One figure of both chains.

    Attributes:
        full_precision: figure of full precision; None for paired figures, which compare with full precision.
        quantized: figure of the chosen chain.
        difference: quantized minus full precision, paired by noise; None for paired figures.
    """

    full_precision: Summary | None
    quantized: Summary
    difference: Summary | None


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a bundle's chain and of full precision against a reference.

    Attributes:
        schedule: name of the schedule.
        full_precision: precision that the chain was compared with.
        precision: requested precision: `auto`, or one precision.
        precision_steps: number of the chain's steps that each precision took.
        correction: whether outputs were corrected.
        guidance: scale of classifier-free guidance.
        num: number of samples per seed.
        seeds: seeds of the noise.
        classes: rows that the samples took in turn; None if each was drawn from its seed, or the model is unconditional.
        reference_count: number of images behind the reference; None if unknown.
        extractor: sha256 of the feature extractor.
        feature_dimension: dimension of the features.
        figures: figures by name.
        unavailable: figures that could not be computed, each with the reason.
        warnings: what to know before quoting the figures.
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
    """Return the figures by name, given the estimates (full precision, quantized chain) of every seed."""
    (_, names), *_ = both
    return {name: _figure([first.get(name) for first, _ in both], [second[name] for _, second in both]) for name in names}


def _figure(full_precision: Sequence[Estimate | None], quantized: Sequence[Estimate]) -> Figure:
    known = [estimate for estimate in full_precision if estimate is not None]
    if not known:
        return Figure(None, summarize(quantized), None)
    return Figure(summarize(known), summarize(quantized), summarize([q - f for q, f in zip(quantized, known, strict=True)]))
