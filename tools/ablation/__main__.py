"""Measure what every part of the method contributes: precision x correction x sampler, and mixed against uniform precisions.

    python -m tools.ablation build/digits-ablation --reference build/digits-reference.npz --features tools/digits/classifier.onnx \\
        --output build/ablation/digits

The bundle fixes the quantizers and the list of precisions before anything is fitted. Every row (`ablation_rows`) is a separate schedule
that is added to the bundle and sampled with the same noise seeds as full precision. Each finished row is kept as a file in the output
folder, so that an interrupted run resumes where it stopped. `ablation_page` turns the results into a page.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

import click
import numpy as np

from calib.walk.reuse import ReuseSteps
from engines.apps.evaluate.extractor import Extractor
from engines.apps.evaluate.metrics.confidence import Estimate
from engines.apps.evaluate.metrics.paired import image_errors
from engines.apps.evaluate.reference import Reference
from engines.apps.evaluate.scores import SampleScores
from engines.apps.evaluate.seeded_samples import SeededSamples
from engines.arrays import Float32, Float64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain, rows_of
from engines.host.files import write_text
from engines.networks.chain_choice import AUTO, ChainChoice
from engines.networks.decoder import open_decoder
from ptqd_export.plan import FULL_PRECISION
from ptqd_export.schedules.add_schedule import add_schedule
from tools.ablation.ablation_rows import SETTINGS, Row, Setting, full_precision_row, mixed_rows, uniform_rows
from tools.ablation.mean_of_db import MEAN_OF_DB, mean_of_db

BATCH = 64

Estimates = Mapping[str, Estimate]


@dataclass(frozen=True)
class Study:
    """Settings that all rows share.

    Attributes:
        bundle: folder of the bundle.
        output: folder of the results.
        extractor, reference: feature extractor and reference images for the distances.
        num: samples per seed.
        seeds: noise seeds.
        others: further references, by name of the distance to them.
    """

    bundle: Path
    output: Path
    extractor: Extractor
    reference: Reference
    num: int
    seeds: Sequence[int]
    others: Mapping[str, Reference] = field(default_factory=dict)

    def images(self, chain: Chain, seed: int) -> Iterator[Float32]:
        """Yield the images of one seed, batch by batch."""
        bundle = Bundle.open(self.bundle)
        model, numbers = bundle.manifest.model, np.arange(self.num, dtype=np.int64)
        noise = NoiseSource(seed, model.sample_shape)
        rows = np.zeros_like(numbers) if model.conditioning is None else rows_of(numbers, noise, model.conditioning.rows, None)
        for images, _ in SeededSamples(noise, numbers, rows, BATCH).images(chain, open_decoder(bundle, "target"), chain.precision or AUTO):
            yield images

    def full_precision_file(self, setting: str, seed: int) -> Path:
        """Return the file that keeps the full-precision images for the paired figures."""
        return self.output / f"{FULL_PRECISION}-{setting}-seed{seed}.npy"


def run_row(study: Study, row: Row) -> None:
    """Fit, sample and evaluate a row, unless an earlier run has done so."""
    result = study.output / f"{row.name}.json"
    if result.exists():
        return
    begin = time.perf_counter()
    add_row(study, row)
    fitted = time.perf_counter()
    chain = open_row(study, row)
    judge = _judge_full_precision if row.is_exact else _judge
    estimates = [judge(study, chain, row, seed) for seed in study.seeds]
    record = {
        "row": asdict(row),
        "steps": chain.step_precisions,
        "num": study.num,
        "seeds": list(study.seeds),
        "figures": {name: [_stored(of_seed[name]) for of_seed in estimates] for name in estimates[0]},
        "fit_seconds": fitted - begin,
        "seconds": time.perf_counter() - begin,
    }
    write_text(result, json.dumps(record, indent=1) + "\n")  # the PSNR of identical samples is Infinity
    figures = ", ".join(f"{name} {fmean(one[name].value for one in estimates):.4g}" for name in estimates[0])
    click.echo(f"{row.name}: {figures} ({record['seconds']:.0f} s)")


def _stored(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "without_block": estimate.without_block.tolist()}


def add_row(study: Study, row: Row) -> None:
    """Add a row's schedule to the bundle, unless an earlier run has done so."""
    if f"schedules/{row.name}.json" not in Bundle.open(study.bundle).manifest.files:
        add_schedule(study.bundle, row.name, row.request)


def open_row(study: Study, row: Row) -> Chain:
    """Open a row's chain, whose schedule was added."""
    return ChainChoice(row.name, correction="on").open(Bundle.open(study.bundle), BATCH)


def _judge_full_precision(study: Study, chain: Chain, row: Row, seed: int) -> Estimates:
    images = np.concatenate(list(study.images(chain, seed)))
    np.save(study.full_precision_file(row.setting, seed), images)
    scores = SampleScores(study.num, study.reference, study.extractor)
    scores.add(images)
    return _estimates(study, scores)


def _estimates(study: Study, scores: SampleScores) -> Estimates:
    return scores.estimates() | {name: scores.distance(other) for name, other in study.others.items()}


def _judge(study: Study, chain: Chain, row: Row, seed: int) -> Estimates:
    kept = np.load(study.full_precision_file(row.setting, seed), mmap_mode="r")
    scores, errors = SampleScores(study.num, study.reference, study.extractor), list[Float64]()
    for begin, images in zip(range(0, study.num, BATCH), study.images(chain, seed), strict=True):
        exact = np.asarray(kept[begin : begin + len(images)])
        scores.add(images, exact)
        errors.append(image_errors(images, exact))
    return {**_estimates(study, scores), MEAN_OF_DB: mean_of_db(np.concatenate(errors))}


def all_rows(bundle: Bundle, precisions: Sequence[str], settings: Sequence[Setting]) -> Iterator[Row]:
    """Yield all rows; full precision comes first because the others are compared with it."""
    for setting in settings:
        yield full_precision_row(setting)
        for precision in precisions:
            yield from uniform_rows(precision, setting)
    yield from mixed_rows(mixtures(bundle), settings[0])


def mixtures(bundle: Bundle) -> dict[str, tuple[str, ...]]:
    """Return the precisions of the paper's choice (`snr`), and of the least predicted error at no higher cost (`budget`).

    Empty unless the bundle was built with the policy `budget`.
    """
    name = f"statistics/{bundle.manifest.placement}/frontier.json"
    if name not in bundle.manifest.files:
        return {}
    chains = json.loads(bundle.path(name).read_text())["chains"]
    (snr,) = (chain for chain in chains if chain["kind"] == "snr")
    wanted = [
        chain for chain in chains if chain["kind"] in ("budget", "frontier", "precisions") and ReuseSteps.of(chain["precisions"]) is None
    ]
    affordable = (chain for chain in wanted if chain["cost"] <= snr["cost"])
    budget = min(affordable, key=lambda chain: float(chain["predicted_error"]))
    return {"snr": tuple(snr["precisions"]), "budget": tuple(budget["precisions"])}


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(value.split(","))


def _settings(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[Setting, ...]:
    if unknown := [name for name in value.split(",") if name not in SETTINGS]:
        raise click.BadParameter(f"{', '.join(unknown)}; known are {', '.join(SETTINGS)}")
    return tuple(SETTINGS[name] for name in value.split(","))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", type=click.Path(path_type=Path), required=True, help="An .npz file of real images.")
@click.option("--features", type=click.Path(path_type=Path), required=True, help="An ONNX feature extractor.")
@click.option("--precisions", callback=_names, required=True, help="Precisions in the order of the table, such as w8a8,w4a8.")
@click.option("--settings", callback=_settings, default=",".join(SETTINGS), show_default=True, help="Samplers, in order.")
@click.option("--num", default=512, show_default=True, help="Samples per seed.")
@click.option("--seeds", default=3, show_default=True, help="Number of seeds; they are 0, 1, ...")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
def main(
    bundle: Path,
    reference: Path,
    features: Path,
    precisions: tuple[str, ...],
    settings: tuple[Setting, ...],
    num: int,
    seeds: int,
    output: Path,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    extractor = Extractor(features)
    known = Reference.load(reference, extractor, Bundle.open(bundle).manifest.model.image_shape)
    study = Study(bundle, output, extractor, known, num, range(seeds))
    for row in all_rows(Bundle.open(bundle), precisions, settings):
        run_row(study, row)


if __name__ == "__main__":
    main()
