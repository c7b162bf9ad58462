"""The committed latent models quantized: their samples still show the digit asked for, and lie near full precision's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.apps.evaluate.metrics.paired import image_errors, pooled_psnr
from engines.bundle.bundle import Bundle
from ptqd_export.plan import Plan, PlanFile, load_plan
from ptqd_export.stages.run_build import run_build
from tools import quality
from tools.quality import Study, digits_of
from tools.training.recognise import recognised

pytestmark = pytest.mark.slow

TOOLS = Path(quality.__file__).parent
CALIBRATION = {"samples": 64, "batch_size": 32, "activation_samples": 128}
SAMPLES = 100


@pytest.mark.parametrize("name", ["dit/plan.json", "latent/plan.json", "flow/plan.json", "flow/student.json"])
def test_quantized_samples_show_the_digit_asked_for(name: str, tmp_path: Path) -> None:
    """At most three samples in a hundred fewer than in full precision; W8A8 is nearer to it than W4A8."""
    written = load_plan(TOOLS / name)
    plan = Plan.model_validate(written.plan.model_dump(mode="json") | {"calibration": CALIBRATION, "correction": {"mode": "joint"}})
    run_build(PlanFile(plan, written.folder, tmp_path / "bundle"))
    fp32, *rows = Study(Bundle.open(tmp_path / "bundle"), SAMPLES).rows()
    labels = digits_of(np.arange(SAMPLES, dtype=np.int64))
    assert fp32.images.shape == (SAMPLES, 3, 32, 32)
    assert recognised(fp32.images, labels) >= 0.95
    assert {row.precision for row in rows} == {"schedule", "w8a8", "w4a8"}
    for row in rows:
        assert recognised(row.images, labels) >= recognised(fp32.images, labels) - 0.03
    distance = {(row.precision, row.correction): pooled_psnr(image_errors(row.images, fp32.images)) for row in rows}
    assert distance["w8a8", "on"] > distance["w4a8", "on"] + 5
    assert distance["w4a8", "on"] > 20
