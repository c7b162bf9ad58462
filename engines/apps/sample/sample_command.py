"""`ptqd-run sample`: writes samples of a bundle to a folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from engines.apps.asked.asked_samples import AskedSamples, DrawnSamples
from engines.apps.asked.batch_sampler import Batch, BatchSampler, SampleOnCopy, SampleWork
from engines.apps.asked.control_images import AskedControl
from engines.apps.asked.edit import Edit
from engines.apps.pictures.images import check_drawable
from engines.apps.sample.output_folder import check_unused, remove_samples
from engines.apps.sample.sample_output import GRID_TILES, NpzOutput, PngOutput, SampleOutput
from engines.apps.sample.samples_record import RECORD, SamplesRecord
from engines.arrays import Int64
from engines.backends.choice import PACKAGES, chosen_runtime, provider_of, runtime_name
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST, ConditioningRecord, ModelRecord
from engines.cluster.folder_copy import FolderCopy
from engines.cluster.session import Cluster, WorkerSize
from engines.cluster.sharded import complete
from engines.cluster.shards import Shards, remove_shards, shards_folder, unit_name
from engines.errors import UsageError
from engines.host.files import sha256, writable_folder, write_text
from engines.host.interruption import keeping
from engines.networks.chain_choice import ChainChoice
from engines.networks.kept_engines import KeptEngines
from engines.networks.prompts import shortened
from engines.terminal.installed_packages import PROJECT, installed_versions
from engines.terminal.progress import progress

SAMPLING = "sampling"


@dataclass(frozen=True)
class SampleRequest:
    """What to sample.

    Attributes:
        bundle: bundle folder.
        output: folder to write to.
        num: number of samples.
        seed: seed of the noise.
        first: number of the first sample.
        batch_size: number of samples that the networks process at once.
        classes: rows that the samples take in turn, `all` for every row, or None to draw each sample's row from (seed, number).
        format: `png` for pictures, `npz` for one archive of raw states, with the decoded images for latent models.
        chain: how to sample.
        prompts: prompts for a text model, which the samples take in turn instead of the bundle's own rows; or None.
        negative_prompt: prompt that guidance steers away from, used with `prompts`; None is the model's own choice.
        cluster: cluster to sample on; None samples in this process.
        overwrite: remove the samples of other runs from the output folder, which are an error otherwise.
        edit: images that the samples start from; None starts from noise. `chain` has the strength.
        control: control images, for a bundle with a control network; or None.
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
    cluster: Cluster | None = None
    overwrite: bool = False
    edit: Edit | None = None
    control: AskedControl | None = None

    @property
    def asked(self) -> AskedSamples:
        """The samples to draw."""
        texts = self.prompts, self.negative_prompt
        return AskedSamples(self.num, self.seed, self.first, self.classes, *texts, self.chain, self.edit, self.control)


@dataclass(frozen=True)
class SampleResult:
    """What was sampled, and how long it took without loading engines.

    Attributes:
        record: content of `samples.json`.
        output: folder of the samples.
        seconds: time of sampling and writing.
        cut: numbers of the prompts that were too long for the text encoder.
        lost: number of a cluster's workers that died; their work was repeated.
        ignored: what LoRAs would change besides, in words for people.
    """

    record: SamplesRecord
    output: Path
    seconds: float
    cut: tuple[int, ...] = ()
    lost: int = 0
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        steps = ", ".join(f"{count} {precision}" for precision, count in self.record.precision_steps.items())
        rate = self.record.num / self.seconds
        cut = f"; cut off because they were too long: prompts {', '.join(map(str, self.cut))}" if self.cut else ""
        lost = f"; workers lost, whose work was repeated: {self.lost}" if self.lost else ""
        ignored = "".join(f"; {one}" for one in self.ignored)
        done = f"{self.record.num} samples in {self.seconds:.1f} s ({rate:.3g} per second), steps: {steps}"
        return f"{done}{cut}{lost}{ignored}; see {self.output}"


def sample_bundle(request: SampleRequest) -> SampleResult:
    """Sample; write the pictures and their grid, or the archive; then write `samples.json`.

    Raises:
        UsageError: the request does not fit the bundle, or the output cannot be written or holds other samples; nothing is written.
        MissingBackendError: the runtime or the cluster is missing.
        PtqdError: the bundle is damaged, a network failed, or the disk is full.
    """
    bundle = Bundle.open(request.bundle, request.chain.size)
    model = bundle.manifest.model
    if request.format == "png":
        check_drawable(model.image_shape)
    if request.cluster is not None and request.chain.loras:
        raise UsageError("LoRAs do not run on a cluster.", found="--ray with --lora", expected="one of them", mend="leave --ray out")
    images = "--image" if request.edit is not None else None if request.control is None else "--control-image"
    if request.cluster is not None and images is not None:
        raise UsageError(
            "A cluster cannot sample from images.", found=f"--ray with {images}", expected="one of them", mend="leave --ray out"
        )
    found = request.asked.of(bundle)
    own = shards_folder(request.output, _asked(request, bundle))
    if not (request.overwrite or (request.cluster is not None and own.is_dir())):  # all samples beside own shards are of this request
        check_unused(request.output)
    work = found.work(request.batch_size, request.format)
    kept = KeptEngines(bundle, request.chain.runtime)
    sampler = work.open(bundle, kept=kept) if request.cluster is None else None
    loras, ignored = ((), ()) if kept.last_changed is None else (kept.last_changed.changes.records, kept.last_changed.changes.ignored)
    folder = writable_folder(request.output)
    remove_samples(folder, own if request.cluster is not None else None)
    begin = time.perf_counter()
    drawn = found.batches(request.batch_size)
    with keeping(_kept(request)), closing(_output(request, folder, found.rows, model)) as output:
        lost = _sample(sampler, drawn, output) if sampler is not None else _sample_on_cluster(request, bundle, work, drawn, output)
        record = _record(request, bundle, found, output.finish()).model_copy(update={"loras": loras})
        write_text(folder / RECORD, record.model_dump_json(indent=1) + "\n")
        remove_shards(folder)
    return SampleResult(record, folder, time.perf_counter() - begin, found.cut, lost, ignored)


def _kept(request: SampleRequest) -> str:
    """Return what an interruption leaves, and how to go on."""
    if request.cluster is not None:
        return "finished batches are kept; the same command continues from there"
    return (
        f"every file in {request.output} is whole, but some are missing, and so is {RECORD}; the same command with --overwrite starts over"
    )


def _output(request: SampleRequest, folder: Path, rows: Int64 | None, model: ModelRecord) -> SampleOutput:
    if request.format == "npz":
        return NpzOutput(folder, rows)
    return PngOutput(folder, _labels(request.prompts, rows, model.conditioning))


def _labels(prompts: tuple[str, ...] | None, rows: Int64 | None, conditioning: ConditioningRecord | None) -> list[str]:
    """Return the labels of the first samples in the grid."""
    if rows is None or conditioning is None:
        return [""] * GRID_TILES
    if prompts is not None:
        return [shortened(prompts[row]) for row in rows[:GRID_TILES]]
    word = "class" if conditioning.file is None else "row"
    return [f"{word} {row}" for row in rows[:GRID_TILES]]


def _sample(sampler: BatchSampler, drawn: Sequence[Batch], output: SampleOutput) -> int:
    with progress(SAMPLING, len(sampler.chain.schedule.steps) * len(drawn)) as advance:
        for batch in drawn:
            output.add(batch[0], sampler(batch, advance, last=batch is drawn[-1]))
    return 0


def _sample_on_cluster(request: SampleRequest, bundle: Bundle, work: SampleWork, drawn: Sequence[Batch], output: SampleOutput) -> int:
    """Sample on the cluster and return the number of workers lost. Batches and samples equal those of one machine, to the last bit."""
    assert request.cluster is not None
    units = [(unit_name(batch[0][0], batch[0][-1]), batch) for batch in drawn]
    shards = Shards(request.output, _asked(request, bundle))
    size = WorkerSize.of(request.cluster, runtime_name(bundle, request.chain.runtime))
    lost = complete(request.cluster, size, lambda ray: SampleOnCopy(FolderCopy.of_bundle(ray, bundle), work), units, shards, SAMPLING)
    for name, batch in units:
        output.add(batch[0], shards.read(name))
    return lost


def _asked(request: SampleRequest, bundle: Bundle) -> dict[str, Any]:
    """Return everything that determines a unit's result."""
    return {
        "bundle": sha256(bundle.folder / MANIFEST),
        "seed": request.seed,
        "batch_size": request.batch_size,
        "classes": request.classes,
        "format": request.format,
        "chain": {name: value for name, value in asdict(request.chain).items() if name != "loras"},  # a cluster takes none
        "prompts": request.prompts,
        "negative_prompt": request.negative_prompt,
    }


def _record(request: SampleRequest, bundle: Bundle, found: DrawnSamples, files: tuple[str, ...]) -> SamplesRecord:
    runtime, reason = chosen_runtime(bundle, request.chain.runtime)
    return SamplesRecord(
        bundle=sha256(bundle.folder / MANIFEST),
        bundle_schema_version=bundle.manifest.schema_version,
        seed=request.seed,
        first=request.first,
        num=request.num,
        schedule=request.chain.schedule,
        precision=request.chain.precision,
        precision_steps=Counter(found.chain.step_networks),
        correction=request.chain.correction,
        guidance=found.chain.scale,
        rows=None if found.rows is None else tuple(found.rows.tolist()),
        prompts=request.prompts,
        negative_prompt=request.negative_prompt,
        strength=found.choice.strength,
        size=request.chain.size,
        images=None if request.edit is None else request.edit.digests,
        mask=None if request.edit is None else request.edit.mask_digest,
        control_images=None if request.control is None else request.control.digests,
        runtime=runtime,
        runtime_reason=reason,
        provider=provider_of(runtime),
        versions=installed_versions(PROJECT, *PACKAGES[runtime]),
        files=files,
    )
