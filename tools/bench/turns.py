"""Measure one case, with the contestants taking turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engines.host.timing import interleaved_medians
from tools.bench.case import Case
from tools.bench.contestants import CONTESTANTS, FP32
from tools.bench.machine import this_machine
from tools.bench.models import MODELS
from tools.bench.result import Result, Row
from tools.bench.worker import LeftOutError, Worker

CALLS = 3
"""Network calls that are timed together, so that the communication with the process is negligible."""


def measure(model: str, case: Case, names: Iterable[str], rounds: int, tell: Callable[[str], None]) -> Result:
    """Measure all contestants of a case.

    Args:
        model: key of `MODELS`.
        case: case of this model.
        names: names of contestants; full precision on ONNX Runtime always takes part, because the others are compared with it.
        rounds: number of rounds that count, after one warm-up round.
        tell: receives progress messages.

    Raises:
        LeftOutError: full precision cannot run.
    """
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in [name for name in CONTESTANTS if name in {FP32, *names}]:
            tell(f"loading {CONTESTANTS[name].title}")
            try:
                workers[name] = stack.enter_context(contextlib.closing(Worker(name, case)))
            except LeftOutError as error:
                if name == FP32:
                    raise
                left_out[name] = str(error)
        tell("chains")
        chains = interleaved_medians({name: partial(worker.ask, "chain") for name, worker in workers.items()}, rounds)
        tell("networks")
        networks = interleaved_medians({name: partial(worker.ask, "network", CALLS) for name, worker in workers.items()}, rounds)
        tell("outputs")
        rows = _rows(workers, chains, {name: seconds / CALLS for name, seconds in networks.items()})
    sampler, record = case.bundle.schedule().sampler, case.bundle.manifest.model
    return Result(
        model=model,
        title=MODELS[model].title,
        parameters=record.parameters,
        batch=case.batch,
        steps=len(case.schedule.steps),
        schedule_steps=sampler.steps,
        guidance=sampler.guidance,
        rounds=rounds,
        machine=this_machine(),
        rows=rows,
        left_out=left_out,
    )


def _rows(workers: Mapping[str, Worker], chains: Mapping[str, float], networks: Mapping[str, float]) -> dict[str, Row]:
    peaks = {name: worker.ask("peak_mib") for name, worker in workers.items()}
    visited = workers[FP32].ask("visited")
    reference = workers[FP32].ask("outputs", visited)
    return {
        name: Row(
            title=CONTESTANTS[name].title,
            chain_seconds=chains[name],
            network_seconds=networks[name],
            load_seconds=worker.loaded.seconds,
            peak_mib=peaks[name],
            before_mib=worker.loaded.before_mib,
            snr_db=None if name == FP32 else snr_db(reference, worker.ask("outputs", visited)),
        )
        for name, worker in workers.items()
    }


def snr_db(reference: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
    """Signal-to-noise ratio in dB of outputs [steps, ...] relative to those of full precision, averaged over the steps."""
    e, d = (value.reshape(len(reference), -1).astype(np.float64) for value in (reference, outputs - reference))
    return float(np.mean(10 * np.log10((e**2).sum(1) / np.maximum((d**2).sum(1), np.finfo(np.float64).tiny))))
