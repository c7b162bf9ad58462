"""`ptqd-run evaluate`: a bundle's chain and full precision from the same noise, against a reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from engines.arrays import Float32, Int64
from engines.bundle import Bundle
from engines.chain_choice import AUTO, ChainChoice
from engines.decoder import Decoder, open_decoder
from engines.errors import UsageError
from engines.evaluation.confidence import Estimate
from engines.evaluation.extractor import Extractor
from engines.evaluation.held_states import HeldStates
from engines.evaluation.reference import Reference
from engines.evaluation.result import EvaluationResult, compare
from engines.evaluation.scores import LEAST_SAMPLES, SampleScores, unavailable, warnings_about
from engines.noise import NoiseSource
from engines.progress import progress
from engines.sample_command import chosen_rows
from engines.sampling import Chain, batches

Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate.

    Attributes:
        bundle: its folder.
        reference: an .npz of images or statistics, see `Reference.load`.
        features: an ONNX file, see `Extractor`.
        num: samples of every seed.
        seed: the first.
        seeds: how many, one after the other.
        batch_size: samples that go through the networks at a time.
        classes: rows to cycle through by sample number, `all` of them, or None to draw each sample's from (seed, number).
        chain: how to sample.
    """

    bundle: Path
    reference: Path
    features: Path
    num: int
    seed: int = 0
    seeds: int = 1
    batch_size: int = 64
    classes: tuple[int, ...] | Literal["all"] | None = None
    chain: ChainChoice = field(default_factory=ChainChoice)


def evaluate_bundle(request: EvaluateRequest, tell: Callable[[str, int, Estimates], None] = lambda *_: None) -> EvaluationResult:
    """Sample and judge, full precision first.

    Args:
        request: what to evaluate.
        tell: called with a chain's name, the seed and its figures as soon as these are known.

    Raises:
        UsageError: the request does not fit the bundle, or the extractor or the reference does not fit its samples.
        PtqdError: the bundle is damaged, or a network failed.
    """
    _check(request)
    bundle = Bundle.open(request.bundle)
    shape = bundle.manifest.model.image_shape
    walks = [_walk(request, bundle, request.seed + number) for number in range(request.seeds)]
    extractor = Extractor(request.features)
    extractor.check(shape, "the samples")
    chain = request.chain.open(bundle, min(request.batch_size, request.num))
    decoder = open_decoder(bundle, request.chain.runtime)
    full_precision = _full_precision(chain, bundle)
    reference = Reference.load(request.reference, extractor, shape)

    def scores() -> SampleScores:
        return SampleScores(request.num, reference, extractor)

    both: list[tuple[Estimates, Estimates]] = []
    for walk in walks:
        with HeldStates(shape) as held:
            first = _judge_full_precision(full_precision, walk, decoder, scores(), held)
            tell(str(full_precision.precision), walk.noise.seed, first)
            second = _judge(chain, walk, decoder, scores(), held)
            tell(request.chain.precision, walk.noise.seed, second)
        both.append((first, second))
    return _result(request, chain, str(full_precision.precision), reference, extractor, both)


def _check(request: EvaluateRequest) -> None:
    if request.num < LEAST_SAMPLES:
        raise UsageError("There are too few samples to compare.", found=f"--num {request.num}", expected=f"at least {LEAST_SAMPLES}")


@dataclass(frozen=True)
class _Walk:
    """The same noise and conditioning for every chain of one seed."""

    noise: NoiseSource
    samples: Int64
    rows: Int64
    batch_size: int

    def images(self, chain: Chain, decoder: Decoder, label: str) -> Iterator[Float32]:
        """The chain's samples as images, batch by batch, in the order of their numbers."""
        steps = len(chain.schedule.steps) * math.ceil(len(self.samples) / self.batch_size)
        with progress(label, steps) as advance:
            for samples, rows in zip(batches(self.samples, self.batch_size), batches(self.rows, self.batch_size), strict=True):
                yield decoder(chain.sample(self.noise, samples, rows, advance))


def _walk(request: EvaluateRequest, bundle: Bundle, seed: int) -> _Walk:
    model = bundle.manifest.model
    noise = NoiseSource(seed, model.sample_shape)
    samples = np.arange(request.num, dtype=np.int64)
    rows = chosen_rows(request.classes, samples, noise, model.conditioning)
    return _Walk(noise, samples, np.zeros_like(samples) if rows is None else rows, request.batch_size)


def _full_precision(chain: Chain, bundle: Bundle) -> Chain:
    """The same chain by the precision of most bits, which needs no correction; its engine opened."""
    records = bundle.manifest.precisions
    known = [name for name in chain.schedule.precisions if name in records]
    precision = max(known, key=lambda name: records[name].weight_bits * records[name].activation_bits)
    chain.denoisers[precision]
    return replace(chain, precision=precision, corrected=False)


def _judge_full_precision(chain: Chain, walk: _Walk, decoder: Decoder, scores: SampleScores, held: HeldStates) -> Estimates:
    for images in walk.images(chain, decoder, f"{chain.precision}, seed {walk.noise.seed}"):
        held.write(images)
        scores.add(images)
    held.rewind()
    return scores.estimates()


def _judge(chain: Chain, walk: _Walk, decoder: Decoder, scores: SampleScores, held: HeldStates) -> Estimates:
    for images in walk.images(chain, decoder, f"{chain.precision or AUTO}, seed {walk.noise.seed}"):
        scores.add(images, held.read(len(images)))
    return scores.estimates()


def _result(
    request: EvaluateRequest,
    chain: Chain,
    full_precision: str,
    reference: Reference,
    extractor: Extractor,
    both: Sequence[tuple[Estimates, Estimates]],
) -> EvaluationResult:
    return EvaluationResult(
        schedule=request.chain.schedule,
        full_precision=full_precision,
        precision=request.chain.precision,
        precision_steps=dict(Counter(chain.step_precisions)),
        correction=request.chain.correction,
        guidance=chain.scale,
        num=request.num,
        seeds=tuple(request.seed + number for number in range(request.seeds)),
        classes=request.classes,
        reference_count=reference.count,
        extractor=extractor.digest,
        feature_dimension=len(reference.features.mean),
        figures=compare(both),
        unavailable=unavailable(reference, extractor),
        warnings=warnings_about(request.num, reference),
    )
