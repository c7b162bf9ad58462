"""`ptqd-run evaluate`: scores a bundle's chain and full precision, from the same noise, against a reference."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.apps.chosen_rows import chosen_rows
from engines.apps.evaluate.evaluation_result import EvaluationResult, Figure, compare
from engines.apps.evaluate.extractor import Extractor, Features
from engines.apps.evaluate.in_pairs import FULL_PRECISION, QUANTIZED, PairedChains, of_chain
from engines.apps.evaluate.measured import Measured
from engines.apps.evaluate.metrics.confidence import Estimate
from engines.apps.evaluate.on_cluster import PairUnit, PairWork, unit_of
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scorers.clip_scorer import ClipScorer
from engines.apps.evaluate.scorers.lpips_scorer import LpipsScorer
from engines.apps.evaluate.scorers.sample_scorer import SampleScorer
from engines.apps.evaluate.scores import LEAST_SAMPLES, OF_FEATURES, SampleScores, unavailable, warnings_about
from engines.apps.evaluate.seeded_samples import SeededSamples
from engines.backends.choice import runtime_name
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.session import Cluster, WorkerSize
from engines.cluster.sharded import complete
from engines.cluster.shards import Shards
from engines.errors import UsageError
from engines.host.files import sha256, writable_folder
from engines.host.interruption import keeping
from engines.networks.chain_choice import ChainChoice
from engines.networks.decoder import open_decoder
from engines.networks.encoder import check_unpainted
from engines.networks.lora.lora_changes import contents_of
from engines.networks.prompts import open_text

Estimates = Mapping[str, Estimate]
Tell = Callable[[str, int, Estimates, Mapping[str, str | None]], None]


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate.

    Attributes:
        bundle: bundle folder.
        reference: .npz file of images or statistics, see `Reference.load`. None takes the model itself: samples of full precision, as many
            as are scored, of the seed after the last one.
        features: ONNX file of the feature extractor, see `Extractor`.
        num: number of samples per seed.
        seed: first seed.
        seeds: number of consecutive seeds.
        batch_size: number of samples that the networks process at once.
        classes: rows that the samples take in turn, `all` for every row, or None to draw each sample's row from (seed, number).
        chain: how to sample.
        cluster: cluster to sample on; None samples in this process.
        shards: folder that keeps finished work, so that an interrupted run can resume; None keeps none.
        prompts: prompts for a text model, which the samples take in turn instead of the bundle's own rows; or None.
        clip: folder of a CLIP model that scores how well images fit their prompts, see `ClipScorer`; or None.
        lpips: ONNX file of an LPIPS network, see `LpipsScorer`; or None.
    """

    bundle: Path
    reference: Path | None
    features: Path
    num: int
    seed: int = 0
    seeds: int = 1
    batch_size: int = 64
    classes: tuple[int, ...] | Literal["all"] | None = None
    chain: ChainChoice = field(default_factory=ChainChoice)
    cluster: Cluster | None = None
    shards: Path | None = None
    prompts: tuple[str, ...] | None = None
    clip: Path | None = None
    lpips: Path | None = None


def evaluate_bundle(request: EvaluateRequest, tell: Tell = lambda *_: None) -> EvaluationResult:
    """Sample and score both chains, full precision first.

    Args:
        request: what to evaluate.
        tell: called with a chain's name, the seed, the figures, and the extractors' names by figure, as soon as they are known.

    Raises:
        UsageError: the request does not fit the bundle, or the extractor or the reference does not fit the samples.
        PtqdError: the bundle is damaged, or a network failed.
    """
    _check(request)
    bundle = Bundle.open(request.bundle, request.chain.size)
    if request.prompts is not None:
        check_unpainted(bundle)
    samples = [_seeded_samples(request, bundle, request.seed + number) for number in range(request.seeds)]
    extractor = Extractor(request.features)
    one = extractor.check(bundle.manifest.model.image_shape, "the samples")
    chain = request.chain.chosen(bundle)
    full_precision = bundle.full_precision(chain.schedule)
    scorers = _scorers(request, bundle)
    if request.cluster is None:
        conditioning = None if request.prompts is None else open_text(bundle).condition(request.prompts)
        chain = request.chain.open(bundle, min(request.batch_size, request.num), conditioning)
        chain.denoisers[full_precision]  # open its engine before any work is done
    reference = _reference(request, bundle, extractor, one, chain)
    extractors = dict.fromkeys(OF_FEATURES, extractor.name) | {scorer.figure: scorer.extractor for scorer in scorers}

    def told(precision: str, seed: int, estimates: Estimates) -> None:
        tell(precision, seed, estimates, extractors)

    def scores() -> SampleScores:
        return SampleScores(request.num, reference, extractor, scorers)

    judge = _in_this_process if request.cluster is None else _on_cluster
    both = judge(_Judged(request, bundle, chain, full_precision, samples, scores, told))
    return _result(request, chain, full_precision, reference, extractor, compare(both, extractors))


def _scorers(request: EvaluateRequest, bundle: Bundle) -> list[SampleScorer]:
    """Open the networks that give further figures."""
    scorers: list[SampleScorer] = []
    if request.clip is not None and request.prompts is not None:
        scorers.append(ClipScorer(request.clip, request.prompts))
    if request.lpips is not None:
        scorers.append(LpipsScorer(request.lpips))
    for scorer in scorers:
        scorer.check(bundle.manifest.model.image_shape)
    return scorers


def _reference(request: EvaluateRequest, bundle: Bundle, extractor: Extractor, one: Features, chain: Chain) -> Reference:
    """Load the reference, or sample one at full precision."""
    if request.reference is not None:
        return Reference.load(request.reference, extractor, bundle.manifest.model.image_shape)
    exact = _exact(bundle, chain)
    own = _seeded_samples(request, bundle, request.seed + request.seeds)
    images = own.images(exact, open_decoder(bundle, request.chain.runtime), f"reference, {exact.precision}")
    return Reference.of_batches((batch for batch, _ in images), request.num, one, extractor)


def _exact(bundle: Bundle, chain: Chain) -> Chain:
    """Return the chain at full precision."""
    return replace(chain, precision=bundle.full_precision(chain.schedule), corrected=False)


@dataclass(frozen=True)
class _Judged:
    """The chains to score, how to score them, and the callback for their figures."""

    request: EvaluateRequest
    bundle: Bundle
    chain: Chain
    full_precision: str
    samples: Sequence[SeededSamples]
    scores: Callable[[], SampleScores]
    tell: Callable[[str, int, Estimates], None]


def _in_this_process(judged: _Judged) -> list[tuple[Estimates, Estimates]]:
    """Return the figures of full precision and of the chosen chain for each seed."""
    request = judged.request
    kept = None if request.shards is None else Shards(request.shards, _asked(judged))
    decoder = open_decoder(judged.bundle, request.chain.runtime)
    pairs = PairedChains(_exact(judged.bundle, judged.chain), judged.chain, decoder, kept)
    label = f"{judged.full_precision} and {request.chain.precision}"
    both: list[tuple[Estimates, Estimates]] = []
    for seeded in judged.samples:
        first, second = judged.scores(), judged.scores()
        with keeping(_kept(request)):
            pairs.score(seeded, label, first, second)
        both.append((first.estimates(), second.estimates()))
        _tell_both(judged, seeded.noise.seed, both[-1])
    if kept is not None:
        kept.remove()
    return both


def _tell_both(judged: _Judged, seed: int, both: tuple[Estimates, Estimates]) -> None:
    for precision, estimates in zip((judged.full_precision, judged.request.chain.precision), both, strict=True):
        judged.tell(precision, seed, estimates)


def _kept(request: EvaluateRequest) -> str:
    """Return what an interruption leaves, and how to go on."""
    if request.shards is not None:
        return "finished work is kept; the same command continues from there"
    return "the figures above are final, but no file is written; with --shards FOLDER a run can resume"


def _on_cluster(judged: _Judged) -> list[tuple[Estimates, Estimates]]:
    """Return the same figures as `_in_this_process`: the sums are added in the same order as on one machine."""
    request = judged.request
    units = {seeded.noise.seed: [unit_of(seeded.noise.seed, *batch) for batch in seeded.batches()] for seeded in judged.samples}
    with tempfile.TemporaryDirectory() as temporary:
        shards = Shards(request.shards or Path(temporary), _asked(judged))
        _complete(judged, [unit for of_seed in units.values() for unit in of_seed], shards)
        both: list[tuple[Estimates, Estimates]] = []
        for seed, of_seed in units.items():
            first, second = judged.scores(), judged.scores()
            for name, _ in of_seed:
                measured = shards.read(name)
                first.take(Measured.of_arrays(of_chain(measured, FULL_PRECISION)))
                second.take(Measured.of_arrays(of_chain(measured, QUANTIZED)))
            both.append((first.estimates(), second.estimates()))
            _tell_both(judged, seed, both[-1])
        shards.remove()
    return both


def _complete(judged: _Judged, units: Sequence[tuple[str, PairUnit]], shards: Shards) -> None:
    request = judged.request
    assert request.cluster is not None

    def work(ray: Any) -> PairWork:
        features = FolderCopy.of(ray, request.features.absolute().parent, [request.features.name])
        batch = min(request.batch_size, request.num)
        return PairWork(FolderCopy.of_bundle(ray, judged.bundle), features, request.chain, judged.full_precision, batch, request.num)

    size = WorkerSize.of(request.cluster, runtime_name(judged.bundle, request.chain.runtime))
    complete(request.cluster, size, work, units, shards, "sampling and measuring")


def _asked(judged: _Judged) -> dict[str, Any]:
    """Return everything that determines a unit's result."""
    request = judged.request
    return {
        "bundle": sha256(judged.bundle.folder / MANIFEST),
        "features": sha256(request.features),
        "num": request.num,
        "batch_size": request.batch_size,
        "classes": request.classes,
        "chain": asdict(replace(request.chain, loras=())),
        **({"loras": contents_of(request.chain.loras)} if request.chain.loras else {}),
        "scorers": [request.clip and str(request.clip.absolute()), request.lpips and sha256(request.lpips)],
        "prompts": request.prompts,
        "schema_version": EvaluationResult.schema_version,
    }


def _check(request: EvaluateRequest) -> None:
    if request.num < LEAST_SAMPLES:
        raise UsageError("There are too few samples to compare.", found=f"--num {request.num}", expected=f"at least {LEAST_SAMPLES}")
    if request.prompts is not None and request.classes is not None:
        raise UsageError("Prompts and classes cannot be combined.", found="prompts and --classes", expected="only one of them")
    if request.clip is not None and request.prompts is None:
        raise UsageError("A CLIP score needs prompts.", found="--clip without prompts", expected="--prompt or --prompt-file as well")
    if request.shards is not None:
        writable_folder(request.shards)
    alone = {"--prompt": request.prompts, "--clip": request.clip, "--lpips": request.lpips, "--lora": request.chain.loras}
    if request.cluster is not None and any(alone.values()):
        given = ", ".join(option for option, value in alone.items() if value)
        raise UsageError("This does not run on a cluster.", found=f"--ray with {given}", expected="one machine, without --ray")
    if request.cluster is not None and request.reference is None:
        raise UsageError(
            "A cluster needs a reference.",
            found="--ray without --reference",
            expected="--reference with an .npz file",
            mend="sample one: ptqd-run sample BUNDLE --precision fp32 --correction off --format npz, with another seed",
        )


def _seeded_samples(request: EvaluateRequest, bundle: Bundle, seed: int) -> SeededSamples:
    model = bundle.manifest.model
    noise = NoiseSource(seed, model.sample_shape)
    samples = np.arange(request.num, dtype=np.int64)
    prompts = request.prompts
    rows = samples % len(prompts) if prompts else chosen_rows(request.classes, samples, noise, model.conditioning)
    return SeededSamples(noise, samples, np.zeros_like(samples) if rows is None else rows, request.batch_size)


def _result(
    request: EvaluateRequest,
    chain: Chain,
    full_precision: str,
    reference: Reference,
    extractor: Extractor,
    figures: Mapping[str, Figure],
) -> EvaluationResult:
    return EvaluationResult(
        schedule=request.chain.schedule,
        full_precision=full_precision,
        precision=request.chain.precision,
        precision_steps=dict(Counter(chain.step_networks)),
        correction=request.chain.correction,
        guidance=chain.scale,
        num=request.num,
        seeds=tuple(request.seed + number for number in range(request.seeds)),
        classes=request.classes,
        reference_count=reference.count,
        extractor=extractor.digest,
        feature_dimension=len(reference.features.mean),
        figures=figures,
        unavailable=unavailable(reference, extractor),
        warnings=warnings_about(request.num, reference, extractor),
        extractor_name=extractor.name,
        prompts=request.prompts,
        reference_seed=None if request.reference is not None else request.seed + request.seeds,
        size=request.chain.size,
        loras=tuple(map(str, request.chain.loras)),
    )
