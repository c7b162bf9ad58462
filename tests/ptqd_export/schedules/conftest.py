"""Tiny bundles as a build would leave them, made without torch: walked with their own engines, with plan, default schedule, statistics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from calib.step_fit import CorrectionChoice
from engines.bundle import Bundle
from engines.samplers import compile_sampler
from engines.schedule import SamplerRecord
from ptqd_export.plan import Plan
from ptqd_export.schedules.contract import schedule_of
from ptqd_export.schedules.settings import ScheduleSettings
from ptqd_export.schedules.walked import walk
from ptqd_export.statistics_file import statistics, step_record

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
    """Replace the corrections that no fit made."""
    bundle, plan = Bundle.open(tiny.folder), Plan.model_validate(PLAN)
    sampler = SamplerRecord(name="ddim", steps=4, eta=1.0, guidance=bundle.manifest.guidance)
    table = compile_sampler("ddim", 4, 1.0, bundle.manifest.model.noise_schedule)
    settings = ScheduleSettings(sampler, table, CorrectionChoice(), "snr", ("w4a8", "w8a8"), plan.calibration, 1)
    results = walk(bundle, settings, lambda _: None)
    texts = {
        "plan.json": plan.resolved_json(),
        "schedules/default.json": schedule_of(sampler, settings.correction, "snr", table, results).model_dump_json(),
    }
    for name in ("w4a8", "w8a8"):
        records = [step_record(result, name, sampler.guidance) for result in results]
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
    """Guided; not to be changed."""
    return finish(replace(tiny, folder=Path(shutil.copytree(tiny.folder, tmp_path_factory.mktemp("finished") / "bundle"))))


@pytest.fixture
def built_tiny(finished_tiny: TinyBundle, tmp_path: Path) -> TinyBundle:
    """A copy of it."""
    return replace(finished_tiny, folder=Path(shutil.copytree(finished_tiny.folder, tmp_path / "built")))


@pytest.fixture
def built_unconditional(tiny_unconditional: TinyBundle) -> TinyBundle:
    return finish(tiny_unconditional)


@pytest.fixture
def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails whatever starts an engine."""

    def refuse(*_: object, **__: object) -> Callable[..., object]:
        raise AssertionError("an engine was started")

    monkeypatch.setattr("engines.backends.onnxruntime.OnnxRuntimeEngine", refuse)
