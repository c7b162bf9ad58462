"""The table of what helps at four bits: its figures are those of the bundles, and each row is a change of the plan that is valid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from engines.bundle.bundle import Bundle
from ptqd_export.plan import load_plan
from ptqd_export.plan.quantization import QuantizationSection
from tools.studies import four_bits

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

PLAN = Path(__file__).parents[3] / "tools" / "digits" / "plan.json"


def test_changes_are_those_of_a_plan() -> None:
    sections = {name: QuantizationSection.model_validate(change) for name, change in four_bits.HELP.items()}
    assert sections["none"] == load_plan(PLAN).plan.quantization
    assert len({section.model_dump_json() for section in sections.values()}) == len(sections)


def test_table_has_the_figures_of_the_bundles(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build(_plan: Any, precision: str, change: Any, samples: int, _output: Path, target: Any) -> Bundle:
        asked.append((precision, dict(change), samples, target))
        return Bundle.open(digits.folder)

    monkeypatch.setattr(four_bits, "build", build)
    given = [str(PLAN), str(tmp_path), "--precision", "w8a8", "--samples", "7", "--only", "rank 16", "--only", "rotation"]
    done = CliRunner().invoke(four_bits.main, given, catch_exceptions=False)
    assert asked == [("w8a8", {"low_rank": 16}, 7, None), ("w8a8", {"rotation": "hadamard"}, 7, None)]
    assert (tmp_path / "w8a8.md").read_text() == done.output
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines()]
    steps = digits.statistics("w8a8")["steps"]
    means = [f"{np.mean([step[figure] for step in steps]):.1f}" for figure in ("snr_db", "corrected_snr_db")]
    record = digits.json("manifest.json")["precisions"]["w8a8"]
    saved = [f"{record[key]:.1f}x" for key in ("bit_operations_saved", "bit_operations_saved_all")]
    assert [line[:5] for line in table[2:]] == [[name, *means, *saved] for name in ("rank 16", "rotation")]
