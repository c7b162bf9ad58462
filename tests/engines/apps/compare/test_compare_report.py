"""What a comparison says about corrections with a LoRA."""

from __future__ import annotations

import math

import pytest

from engines.apps.compare.compare_report import lora_lines
from engines.apps.compare.compare_result import CompareResult, PrecisionFigures, StepFigures


def _result(gained: float, without: CompareResult | None = None) -> CompareResult:
    """One step at 20 dB, to which corrections add `gained` dB."""
    corrected = 20 + gained
    step = StepFigures(0, 999, True, 20.0, 1.0, 20.0, 0.1, None if math.isinf(corrected) else corrected)
    return CompareResult("default", "fp32", 1.0, 1, 1, {"w8a8": PrecisionFigures.of("w8a8", (step,))}, without_lora=without)


@pytest.mark.parametrize(
    ("gained", "before", "verdict"),
    [
        (0.2, 6.0, "help less"),
        (-0.05, 6.0, "help less"),
        (2.9, 6.0, "help less"),
        (3.1, 6.0, "still help"),
        (7.0, math.inf, "help less"),
        (-0.2, 0.5, "no longer help"),
        (-0.2, 0.0, "no longer help"),
        (-0.2, -0.2, "do not help, with or without the LoRA"),
        (0.05, 0.09, "change little"),
        (-0.05, -0.5, "change little"),
        (0.2, 0.0, "still help"),
    ],
)
def test_what_corrections_add_is_judged_by_what_they_added_without_the_lora(gained: float, before: float, verdict: str) -> None:
    (line,) = lora_lines(_result(gained, _result(before)))
    assert line.startswith(f"w8a8: the corrections {verdict}")


def test_nothing_is_said_without_a_lora() -> None:
    assert lora_lines(_result(1.0)) == []
