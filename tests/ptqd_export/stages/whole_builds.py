"""Facts about the two tiny models, and operations on their bundles, that the tests of whole builds share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank
from ptqd_export.plan import PlanFile
from ptqd_export.stages.reporter import BuildProgress

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Array, Built

CHANNELS = {"class_build": 1, "cross_build": 2}
STEPS = {"class_build": 4, "cross_build": 3}
QUANTIZED = {"class_build": ("w8a8", "w4a8", "w4a4", "w3a8"), "cross_build": ("w8a8", "w4a8", "w4a16")}


UNCACHED = ("load", "bundle", "times", "optimize")
"""Stages that every build runs again."""


class FinishedStages(list[BuildProgress]):
    """An `on_progress` that collects the finished stages of a build, without those that every build runs again."""

    def __call__(self, progress: BuildProgress) -> None:
        if progress.finished and progress.stage not in UNCACHED:
            self.append(progress)


def remade_stages(finished: list[BuildProgress]) -> Iterator[str]:
    """Yield the names of the stages that were not reused."""
    return (progress.stage for progress in finished if not progress.reused)


def portable(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a bundle outside `local/`, by name."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("local/")}


def sample(folder: Path, *, first: int = 0, precision: str | None = None, corrected: bool = True) -> Array:
    """Draw six samples of a bundle with its default schedule."""
    bundle = Bundle.open(folder)
    schedule = bundle.schedule()
    bank = EngineBank(bundle, schedule.sampler.guidance, threads=1)
    noise = NoiseSource(5, bundle.manifest.model.sample_shape)
    samples = np.arange(first, first + 6, dtype=np.int64)
    rows = np.zeros_like(samples) if bank.conditioning is None else samples % bank.conditioning.rows
    return Chain(schedule, bank, precision, corrected).sample(noise, samples, rows)


def changed(built: Built, output: Path, **sections: Any) -> PlanFile:
    """Copy the finished stages of a build to a new output folder; return the plan for it, with some keys replaced."""
    plan = built.plan_file.plan.model_dump(mode="json")
    merged = {key: plan[key] | value if isinstance(value, dict) else value for key, value in sections.items()}
    return built.resumed_in(output, **merged)
