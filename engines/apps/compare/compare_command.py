"""`ptqd-run compare`: compares every engine of a bundle with full precision, at the states of the full-precision chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from engines.apps.chosen_rows import chosen_rows
from engines.apps.compare.agreement import Agreement
from engines.apps.compare.compare_result import CompareResult, PrecisionFigures, StepFigures, finite
from engines.apps.compare.visits import Visit, spread_steps, visits
from engines.arrays import Float32, Int64
from engines.backends.choice import Runtime, on_onnxruntime, open_backend
from engines.bundle.bundle import DEFAULT, Bundle
from engines.bundle.image_size import ImageSize
from engines.chain.correction import correct
from engines.chain.denoiser import guide
from engines.chain.finite import check_output
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.chain.schedule import Schedule
from engines.errors import MissingBackendError, UnknownNameError, UsageError
from engines.host.files import writable_folder
from engines.networks.engine_bank import EngineBank
from engines.networks.engine_denoiser import EngineDenoiser
from engines.networks.lora.changed_weights import ChangedWeights
from engines.networks.lora.lora_use import LoraUse
from engines.terminal.progress import progress

REFERENCE = "reference"
"""Name of the network that the others are compared with, also in the saved files."""

Runs = Iterable[tuple[Visit, Mapping[str, Float32]]]
"""Each visit with the outputs [branches, batch, *shape] of every network, by name."""

RunEngines = Callable[[Iterable[Visit], Mapping[str, EngineDenoiser], Path | None], Runs]


@dataclass(frozen=True)
class CompareRequest:
    """What to compare.

    Attributes:
        bundle: bundle folder.
        schedule: schedule whose full-precision chain gives the states.
        num: number of samples, numbered from 0.
        steps: number of the schedule's steps to compare at; None takes all.
        seed: seed of the noise.
        precisions: precisions to compare; None takes all except full precision.
        batch_size: number of samples that the networks process at once.
        save: folder for inputs and outputs in Polygraphy's format, or None.
        runtime: runtime of the engines; the reference is always full precision on ONNX Runtime and the CPU.
        loras: LoRAs in the weights of all networks, also of the reference.
        size: height and width of the images in pixels; None takes the bundle's first.
    """

    bundle: Path
    schedule: str = DEFAULT
    num: int = 16
    steps: int | None = None
    seed: int = 0
    precisions: tuple[str, ...] | None = None
    batch_size: int = 16
    save: Path | None = None
    runtime: Runtime = "target"
    loras: tuple[LoraUse, ...] = ()
    size: ImageSize | None = None


def compare_bundle(request: CompareRequest) -> CompareResult:
    """Run full precision and every engine on the same inputs; with LoRAs, also once without them.

    Raises:
        UsageError: the request does not fit the bundle, or the folder to save to is not empty; nothing is written.
        MissingBackendError: Polygraphy is not installed.
        PtqdError: the bundle is damaged, or a network failed.
    """
    run_engines, bundle = _polygraphy(), Bundle.open(request.bundle, request.size)
    changed = ChangedWeights.of(bundle, request.loras) if request.loras else None
    found = _compare(request, bundle, run_engines, changed)
    if changed is None:
        return found
    without = _compare(replace(request, save=None), bundle, run_engines, None)
    loras = tuple(f"{one.file}:{one.scale:g}" for one in changed.changes.records)
    return replace(found, loras=loras, ignored=changed.changes.ignored, without_lora=without)


def _compare(request: CompareRequest, bundle: Bundle, run_engines: RunEngines, changed: ChangedWeights | None) -> CompareResult:
    schedule = bundle.schedule(request.schedule)
    guidance, batch = schedule.sampler.guidance, min(request.batch_size, request.num)
    backend, plain = open_backend(bundle, request.runtime), on_onnxruntime(bundle, provider="CPU")
    full = bundle.full_precision(schedule)
    names = _compared(request, bundle, schedule, full if backend == plain else None)
    steps = spread_steps(schedule, request.steps)
    reference = EngineBank(bundle, guidance, batch=batch, backend=plain, whole=True, changed=changed)[full]
    bank = EngineBank(bundle, guidance, batch=batch, backend=backend, whole=True, changed=changed)
    bank.open(names)
    networks = {REFERENCE: reference, **{name: bank[name] for name in names}}
    save = None if request.save is None else _empty_folder(request.save)
    noise, rows = _samples(request, bundle)
    chain = Chain(schedule, {full: reference}, full, corrected=False)
    figures = Figures(schedule, names)
    with progress("comparing", (steps[-1] + 1 + len(steps)) * math.ceil(request.num / request.batch_size)) as advance:
        visited = visits(chain, steps, noise, rows, request.batch_size, advance)
        figures.add(_advancing(run_engines(visited, networks, save), advance))
    return CompareResult(
        schedule=request.schedule,
        size=request.size,
        reference=reference.engine.label,
        guidance=guidance,
        num=request.num,
        seed=request.seed,
        precisions={name: PrecisionFigures.of(networks[name].engine.label, figures.of(name)) for name in names},
    )


def _polygraphy() -> RunEngines:
    try:
        from engines.apps.compare.polygraphy_run import run_engines
    except ImportError as error:
        raise MissingBackendError("Polygraphy is not installed.", found=str(error), mend="pip install 'ptqd-export[compare]'") from error
    return run_engines


def _compared(request: CompareRequest, bundle: Bundle, schedule: Schedule, itself: str | None) -> tuple[str, ...]:
    """Return the requested precisions, without the one whose engine is the reference itself."""
    known = tuple(name for name in schedule.precisions if name in bundle.manifest.precisions and name != itself)
    if not known:
        raise UsageError("There is nothing to compare.", found=f"schedule {request.schedule} has only {itself}")
    for name in request.precisions or ():
        if name not in known:
            raise UnknownNameError("There is no such engine to compare.", found=name, known=known)
    return tuple(dict.fromkeys(request.precisions or known))


def _empty_folder(path: Path) -> Path:
    if path.is_dir() and any(path.iterdir()):
        raise UsageError(
            "The folder to save to is not empty.", found=path, expected="a new folder", mend="remove it, or give another folder"
        )
    return writable_folder(path)


def _advancing(runs: Runs, advance: Callable[[], None]) -> Runs:
    """Yield the runs, and call `advance` after each."""
    for run in runs:
        yield run
        advance()


def _samples(request: CompareRequest, bundle: Bundle) -> tuple[NoiseSource, Int64]:
    """Return the noise and the conditioning rows that sampling with this seed would use."""
    model = bundle.manifest.model
    noise, numbers = NoiseSource(request.seed, model.sample_shape), np.arange(request.num, dtype=np.int64)
    rows = chosen_rows(None, numbers, noise, model.conditioning)
    return noise, np.zeros_like(numbers) if rows is None else rows


@dataclass
class _StepAgreement:
    """Agreement of one engine at one step, before and after the correction."""

    timestep: float
    raw: Agreement = field(default_factory=Agreement)
    corrected: Agreement = field(default_factory=Agreement)


class Figures:
    """Accumulates the agreement of engines at a schedule's steps.

    Args:
        schedule: schedule with the corrections.
        names: names of the engines.
    """

    def __init__(self, schedule: Schedule, names: Sequence[str]) -> None:
        self._schedule = schedule
        self._found: dict[str, dict[int, _StepAgreement]] = {name: {} for name in names}

    def add(self, runs: Runs) -> None:
        """Add the outputs of the networks, one visit at a time."""
        guidance = self._schedule.sampler.guidance
        for visit, outputs in runs:
            check_output(outputs[REFERENCE], REFERENCE, visit.timestep, visit.step)
            step, e = self._schedule.steps[visit.step], guide(outputs[REFERENCE], guidance)
            for name, by_step in self._found.items():
                found = by_step.setdefault(visit.step, _StepAgreement(visit.timestep))
                check_output(outputs[name], name, visit.timestep, visit.step)
                q, correction = guide(outputs[name], guidance), step.corrections[name]
                found.raw.add(e, q)
                x = visit.x / np.float32(step.input_scale)
                found.corrected.add(e, correct(q, x, correction.gain, correction.offset, correction.state_gain))

    def of(self, name: str) -> tuple[StepFigures, ...]:
        """Return the figures of one precision, in order of steps."""
        return tuple(self._figures(name, step, found) for step, found in sorted(self._found[name].items()))

    def _figures(self, name: str, step: int, found: _StepAgreement) -> StepFigures:
        return StepFigures(
            step=step,
            timestep=found.timestep,
            chosen=self._schedule.steps[step].precision == name,
            snr_db=finite(found.raw.snr_db),
            cosine_similarity=found.raw.cosine_similarity,
            psnr_db=finite(found.raw.psnr_db),
            max_absolute_error=found.raw.max_absolute_error,
            corrected_snr_db=finite(found.corrected.snr_db),
        )
