"""The digits bundle, built once per session from its plan with less calibration. Tests must not modify it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.arrays import Float32, Int64
from engines.bundle.bundle import Bundle
from engines.chain.noise import NoiseSource
from engines.chain.sampling import Chain
from engines.networks.engine_bank import EngineBank
from ptqd_export.plan import Plan, PlanFile, load_plan
from ptqd_export.stages.run_build import run_build
from tests.shared import shared_folder

ROOT = Path(__file__).parents[2]
CALIBRATION = {"samples": 32, "batch_size": 32, "activation_samples": 128, "verify_states": 16}
CORRECTION = {"mode": "signed", "variance": "schedule"}
"""The correction whose arithmetic the tests spell out."""


@dataclass(frozen=True)
class Digits:
    """The digits bundle on disk."""

    folder: Path

    def json(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name).read_text())
        return content

    def graph(self, precision: str) -> Path:
        return self.folder / "graphs" / "onnxruntime" / f"{precision}.onnx"

    def statistics(self, precision: str) -> dict[str, Any]:
        return self.json(f"statistics/onnxruntime/{precision}.json")

    def sample(self, precision: str, seed: int, numbers: Int64, rows: Int64) -> Float32:
        """Draw corrected samples with one precision at every step."""
        bundle = Bundle.open(self.folder)
        schedule = bundle.schedule()
        bank = EngineBank(bundle, schedule.sampler.guidance, batch=len(numbers))
        return Chain(schedule, bank, precision).sample(NoiseSource(seed, bundle.manifest.model.sample_shape), numbers, rows)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    written = load_plan(ROOT / "tools" / "digits" / "plan.json")
    plan = Plan.model_validate(written.plan.model_dump(mode="json") | {"calibration": CALIBRATION, "correction": CORRECTION})
    built = shared_folder(tmp_path_factory, "digits", lambda folder: run_build(PlanFile(plan, written.folder, folder / "bundle")))
    return Digits(built / "bundle")
