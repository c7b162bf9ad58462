"""`ptqd-run sample`: samples of a bundle into a folder."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from engines.arrays import Int64
from engines.bundle import Bundle, ConditioningRecord, ModelRecord
from engines.chain_choice import ChainChoice
from engines.decoder import Decoder, open_decoder
from engines.errors import UsageError
from engines.files import writable_folder, write_text
from engines.images import check_drawable
from engines.interruption import keeping
from engines.noise import NoiseSource
from engines.progress import progress
from engines.prompts import TextModel, open_text, shortened
from engines.sample_output import GRID_TILES, NpzOutput, PngOutput, SampleOutput
from engines.samples_record import SamplesRecord
from engines.sampling import Chain, batches, rows_of

RECORD = "samples.json"


@dataclass(frozen=True)
class SampleRequest:
    """What to sample.

    Attributes:
        bundle: its folder.
        output: folder to write to; files of the same names are replaced.
        num: how many samples.
        seed: of the noise.
        first: number of the first sample.
        batch_size: samples that go through the networks at a time.
        classes: rows to cycle through by sample number, `all` of them, or None to draw each sample's from (seed, number).
        format: pictures, or one archive of raw states, of latent models with their images.
        chain: how to sample.
        prompts: of text models, to cycle through by sample number in place of the bundle's own rows; or None.
        negative_prompt: what guidance leads away from, beside prompts; None is the model's own choice.
    """

    bundle: Path
    output: Path
    num: int
    seed: int
    first: int = 0
    batch_size: int = 64
    classes: tuple[int, ...] | Literal["all"] | None = None
    format: Literal["png", "npz"] = "png"
    chain: ChainChoice = field(default_factory=ChainChoice)
    prompts: tuple[str, ...] | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class SampleResult:
    """What was sampled, and how long it took without loading engines.

    Attributes:
        record: what `samples.json` holds.
        output: its folder.
        seconds: of sampling and writing.
        cut: numbers of the prompts that were too long for the text encoder.
    """

    record: SamplesRecord
    output: Path
    seconds: float
    cut: tuple[int, ...] = ()

    def __str__(self) -> str:
        steps = ", ".join(f"{count} {precision}" for precision, count in self.record.precision_steps.items())
        rate = self.record.num / self.seconds
        cut = f"; too long, their end is left out: prompts {', '.join(map(str, self.cut))}" if self.cut else ""
        return f"{self.record.num} samples in {self.seconds:.1f} s ({rate:.3g} a second), steps: {steps}{cut}; see {self.output}"


def sample_bundle(request: SampleRequest) -> SampleResult:
    """Sample, and write pictures and grid or archive, then `samples.json`.

    Raises:
        UsageError: the request does not fit the bundle, or the output cannot be written. Nothing is written then.
        PtqdError: the bundle is damaged, a network failed, or the disk is full.
    """
    bundle = Bundle.open(request.bundle)
    model = bundle.manifest.model
    if request.format == "png":
        check_drawable(model.image_shape)
    noise = NoiseSource(request.seed, model.sample_shape)
    samples = _numbers(request)
    text = _text(request, bundle)
    prompts = request.prompts or ()
    rows = samples % len(prompts) if prompts else chosen_rows(request.classes, samples, noise, model.conditioning)
    conditioning = None if text is None else text.condition(prompts, request.negative_prompt)
    chain = request.chain.open(bundle, min(request.batch_size, request.num), conditioning)
    if request.negative_prompt is not None and chain.guidance == 1:
        raise UsageError("A negative prompt needs guidance.", found="guidance 1", expected="another --guidance, or no --negative-prompt")
    decoder = open_decoder(bundle, request.chain.runtime)
    folder = writable_folder(request.output)
    (folder / RECORD).unlink(missing_ok=True)
    output = _output(request, folder, decoder, rows, model)
    begin = time.perf_counter()
    with keeping(f"every file in {folder} is whole, but without {RECORD} they are not all"):
        _sample(chain, noise, samples, np.zeros_like(samples) if rows is None else rows, request.batch_size, output)
        record = _record(request, chain, rows, output.finish())
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
    return SampleResult(record, folder, time.perf_counter() - begin, () if text is None else text.cut(prompts))


def _text(request: SampleRequest, bundle: Bundle) -> TextModel | None:
    """The bundle's text encoders, where prompts are asked for."""
    if request.prompts is None:
        if request.negative_prompt is not None:
            raise UsageError("A negative prompt goes with prompts.", found="--negative-prompt alone", expected="prompts too")
        return None
    if request.classes is not None:
        raise UsageError("Prompts take the place of classes.", found="prompts and --classes", expected="one of them")
    return open_text(bundle)


def _numbers(request: SampleRequest) -> Int64:
    end = request.first + request.num
    if end > 2**63:
        raise UsageError("A sample number is out of range.", found=end - 1, expected="0 to 2^63 - 1")
    return request.first + np.arange(request.num, dtype=np.int64)


def chosen_rows(
    classes: tuple[int, ...] | Literal["all"] | None, samples: Int64, noise: NoiseSource, conditioning: ConditioningRecord | None
) -> Int64 | None:
    """The row of each sample; None where the model is unconditional."""
    if conditioning is None:
        if classes is not None:
            raise UsageError("The model is unconditional.", found="--classes", expected="no --classes")
        return None
    chosen = tuple(range(conditioning.rows)) if classes == "all" else classes
    for row in chosen or ():
        if not 0 <= row < conditioning.rows:
            raise UsageError("A class is out of range.", found=row, expected=f"0 to {conditioning.rows - 1}")
    return rows_of(samples, noise, conditioning.rows, None if chosen is None else np.array(chosen, dtype=np.int64))


def _output(request: SampleRequest, folder: Path, decoder: Decoder, rows: Int64 | None, model: ModelRecord) -> SampleOutput:
    if request.format == "npz":
        return NpzOutput(folder, rows, None if model.decoder is None else decoder)
    return PngOutput(folder, decoder, _labels(request.prompts, rows, model.conditioning))


def _labels(prompts: tuple[str, ...] | None, rows: Int64 | None, conditioning: ConditioningRecord | None) -> list[str]:
    """What the first samples are of."""
    if rows is None or conditioning is None:
        return [""] * GRID_TILES
    if prompts is not None:
        return [shortened(prompts[row]) for row in rows[:GRID_TILES]]
    word = "class" if conditioning.file is None else "row"
    return [f"{word} {row}" for row in rows[:GRID_TILES]]


def _sample(chain: Chain, noise: NoiseSource, samples: Int64, rows: Int64, batch_size: int, output: SampleOutput) -> None:
    steps = len(chain.schedule.steps) * math.ceil(len(samples) / batch_size)
    with progress("sampling", steps) as advance:
        for batch, of_batch in zip(batches(samples, batch_size), batches(rows, batch_size), strict=True):
            output.add(batch, chain.sample(noise, batch, of_batch, advance))


def _record(request: SampleRequest, chain: Chain, rows: Int64 | None, files: tuple[str, ...]) -> SamplesRecord:
    return SamplesRecord(
        seed=request.seed,
        first=request.first,
        num=request.num,
        schedule=request.chain.schedule,
        precision=request.chain.precision,
        precision_steps=Counter(chain.step_precisions),
        correction=request.chain.correction,
        guidance=chain.schedule.sampler.guidance if chain.guidance is None else chain.guidance,
        rows=None if rows is None else tuple(rows.tolist()),
        prompts=request.prompts,
        negative_prompt=request.negative_prompt,
        files=files,
    )
