"""The result of `ptqd-run evaluate`. Its fields are those of the `--json` file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import MappingProxyType
from typing import Literal

from engines.apps.evaluate.metrics.confidence import Estimate, Summary, summarize
from engines.apps.evaluate.scores import OVER_SEEDS
from engines.bundle.image_size import ImageSize

OLD_PSNR = "psnr_as_mean_of_dB_(identical_images:_150)"
"""What the figure `psnr` of files of version 1 is."""


@dataclass(frozen=True)
class Figure:
    """One figure of both chains.

    Attributes:
        full_precision: figure of full precision; None for paired figures, which compare with full precision.
        quantized: figure of the chosen chain.
        difference: quantized minus full precision, paired by noise; None for paired figures.
        extractor: name of the network that the figure was computed with, where it has one; figures of different networks do not compare.
    """

    full_precision: Summary | None
    quantized: Summary
    difference: Summary | None
    extractor: str | None = None


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
        extractor_name: name of the feature extractor; None if its file has none.
        reference_seed: seed of the full-precision samples that are the reference; None if a file was given.
        prompts: prompts that the samples took in turn; None if they took rows of the bundle.
        feature_dimension: dimension of the features.
        figures: figures by name.
        unavailable: figures that could not be computed, each with the reason.
        warnings: what to know before quoting the figures.
        size: height and width of the images in pixels that was asked for; None is the bundle's first.
        loras: LoRAs in the weights of both chains, with their scales.
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
    extractor_name: str | None = None
    reference_seed: int | None = None
    prompts: tuple[str, ...] | None = None
    schema_version: Literal[1, 2] = 2
    size: ImageSize | None = None
    loras: tuple[str, ...] = ()

    def with_current_names(self) -> EvaluationResult:
        """Return the result with names that say what its figures are: `psnr` of version 1 is neither of today's."""
        return replace(self, figures={OLD_PSNR if name == "psnr" else name: figure for name, figure in self.figures.items()})


def compare(
    both: Sequence[tuple[Mapping[str, Estimate], Mapping[str, Estimate]]], extractors: Mapping[str, str | None] = MappingProxyType({})
) -> dict[str, Figure]:
    """Return the figures by name.

    Args:
        both: estimates of full precision and of the quantized chain, for every seed.
        extractors: names of the extractors by figure.
    """
    (_, names), *_ = both
    return {
        name: _figure(name, [first.get(name) for first, _ in both], [second[name] for _, second in both], extractors.get(name))
        for name in names
    }


def labelled(name: str, extractor: str | None) -> str:
    """Return a figure's name in words, with the name of the network that it was computed with."""
    return name.replace("_", " ") + ("" if extractor is None else f" ({extractor})")


def infinite_in_words(summary: Summary) -> str:
    """Return what an infinite PSNR means."""
    identical = sum(map(math.isinf, summary.values))
    return "identical" if identical == len(summary.values) else f"identical in {identical} of {len(summary.values)} seeds"


def _figure(name: str, full_precision: Sequence[Estimate | None], quantized: Sequence[Estimate], extractor: str | None) -> Figure:
    known = [estimate for estimate in full_precision if estimate is not None]
    if not known:
        return Figure(None, summarize(quantized, OVER_SEEDS.get(name, fmean)), None, extractor)
    return Figure(summarize(known), summarize(quantized), summarize([q - f for q, f in zip(quantized, known, strict=True)]), extractor)
