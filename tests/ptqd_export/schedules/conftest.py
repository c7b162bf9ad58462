"""Tiny bundles as a build would write them, but made without torch: with a plan, statistics, and a default schedule fitted on a walk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calib.correction.correction_fit import BOTH_PARTS
from calib.walk.fit import FitSettings, fit_on_walk
from calib.walk.policy import SnrPolicy
from engines.bundle.bundle import Bundle
from engines.chain.schedule import SamplerRecord
from ptqd_export.plan import Plan
from ptqd_export.records.statistics_file import statistics, step_record
from ptqd_export.schedules.add_schedule import measured_networks
from ptqd_export.schedules.settings import ScheduleSettings, calibration_samples

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

PLAN = {
    "model": {"path": "model"},
    "sampler": {"name": "ddim", "steps": 4, "eta": 1.0},
    "precisions": ["w8a8", "w4a8"],
    "calibration": {"samples": 24, "batch_size": 10, "seed": 5},
    "target": {"name": "onnxruntime", "threads": 1},
    "output": "bundle",
}


def finish(tiny: TinyBundle) -> TinyBundle:
    """Add a plan and statistics to a tiny bundle, and replace its made-up corrections by fitted ones."""
    bundle, plan = Bundle.open(tiny.folder), Plan.model_validate(PLAN)
    sampler = SamplerRecord(name="ddim", steps=4, eta=1.0, guidance=bundle.manifest.guidance)
    fit = FitSettings(
        sampler=sampler,
        noise_schedule=bundle.manifest.model.noise_schedule,
        mode="joint",
        variance="schedule",
        parts=BOTH_PARTS,
        policy="snr",
        choose=SnrPolicy(("w4a8", "w8a8")),
        samples=calibration_samples(bundle, plan.calibration),
        trajectory="quantized",
        batch_size=plan.calibration.batch_size,
    )
    networks = measured_networks(bundle, ScheduleSettings(fit, ("w4a8", "w8a8"), 1), fit.batch_size)
    fitted = fit_on_walk(networks, fit, tiny.folder / "local", lambda: None)
    texts = {
        "plan.json": plan.resolved_json(),
        "schedules/default.json": fitted.schedule.model_dump_json(),
    }
    for name in ("w4a8", "w8a8"):
        records = [step_record(result, name, sampler.guidance) for result in fitted.results]
        texts[f"statistics/onnxruntime/{name}.json"] = json.dumps(
            statistics(name, "onnxruntime", sampler.guidance, records, [{"name": f"layer of {name}"}])
        )
    for name, text in texts.items():
        (tiny.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny.folder / name).write_text(text)
        tiny.rehash(name)
    return tiny


@pytest.fixture(scope="session")
def finished_tiny(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A finished bundle with guidance. Tests must not modify it."""
    return finish(replace(tiny, folder=Path(shutil.copytree(tiny.folder, tmp_path_factory.mktemp("finished") / "bundle"))))


@pytest.fixture
def built_tiny(finished_tiny: TinyBundle, tmp_path: Path) -> TinyBundle:
    """A copy of `finished_tiny` that a test may modify."""
    return replace(finished_tiny, folder=Path(shutil.copytree(finished_tiny.folder, tmp_path / "built")))


@pytest.fixture
def built_unconditional(tiny_unconditional: TinyBundle) -> TinyBundle:
    return finish(tiny_unconditional)


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every start of an engine fail the test."""

    def refuse(*_: object, **__: object) -> Callable[..., object]:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", refuse)
