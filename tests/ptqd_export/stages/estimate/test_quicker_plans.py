"""What changes of a plan save is the difference of two estimates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptqd_export.stages.build_context import BuildContext
from ptqd_export.stages.estimate.planned_stages import planned_stages
from ptqd_export.stages.estimate.quicker_plans import quicker_plans
from tests.ptqd_export.stages.whole_builds import changed

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


def _seconds(context: BuildContext) -> Callable[[str], float]:
    """A build whose walk takes a second for each sample, and whose learned rounding takes 100."""
    plan = context.plan
    walk = {"statistics": float(plan.calibration.samples), "schedule": float(plan.calibration.samples), "probes": 50.0}
    return lambda stage: walk.get(stage, 100.0 if stage.startswith("reconstruct") else 1.0)


def test_changes_are_listed_by_what_they_save(class_build: Built, tmp_path: Path) -> None:
    sections = {"calibration": {"samples": 1000}, "quantization": {"rounding": "block"}, "steps": {"policy": "budget", "budget": 0.5}}
    context = class_build.context.changed(changed(class_build, tmp_path / "bundle", **sections))
    saved = quicker_plans(context, planned_stages(context), _seconds)
    assert list(saved) == ["calibration.samples 128", 'steps.policy "snr"', 'quantization.rounding "nearest"']
    assert saved["calibration.samples 128"] == pytest.approx(2 * (1000 - 128))
    assert saved['steps.policy "snr"'] == pytest.approx(1000 + 50 + 1)
    assert saved['quantization.rounding "nearest"'] == pytest.approx(100 * len(context.quantized_precisions))


def test_a_plan_that_cannot_get_quicker_gets_no_advice(class_build: Built) -> None:
    context = class_build.context
    assert quicker_plans(context, planned_stages(context), _seconds) == {}
