"""The table of low-bit precisions: its figures are those of the bundle, and groups stand below the precision that they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from engines.bundle.bundle import Bundle
from tools.studies import low_bits

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

ROOT = Path(__file__).parents[3]


def test_table_has_the_figures_of_the_bundles_in_the_order_of_precisions(
    digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def build(_plan: Any, precisions: tuple[str, ...], group: int | None, samples: int, _output: Path, attention: str = "float") -> Bundle:
        asked.append((precisions, group, samples, attention))
        return Bundle.open(digits.folder)

    monkeypatch.setattr(low_bits, "PRECISIONS", ("w4a8", "w8a8"))
    monkeypatch.setattr(low_bits, "GROUPED", "w4a8")
    monkeypatch.setattr(low_bits, "ATTENDED", ("w4a8",))
    monkeypatch.setattr(low_bits, "build", build)
    plan = str(ROOT / "tools" / "digits" / "plan.json")
    done = CliRunner().invoke(low_bits.main, [plan, str(tmp_path), "--samples", "7"], catch_exceptions=False)
    attended = [(("w4a8",), None, 7, form) for form in ("fp8", "int8")]
    assert asked == [(("w4a8", "w8a8"), None, 7, "float"), *((("w4a8",), group, 7, "float") for group in (128, 64, 32)), *attended]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.output.splitlines()]
    assert (tmp_path / "table.md").read_text() == done.output
    below = [*(f"groups of {size}" for size in (128, 64, 32)), "attention in fp8", "attention in int8"]
    assert [line[0] for line in table] == ["precision", "---", "w4a8", *(f"w4a8, {what}" for what in below), "w8a8"]
    steps = digits.statistics("w8a8")["steps"]
    means = [f"{np.mean([step[figure] for step in steps]):.1f}" for figure in ("snr_db", "corrected_snr_db")]
    saved = digits.json("manifest.json")["precisions"]["w8a8"]["bit_operations_saved_all"]
    assert (table[-1][1:4], table[-1][5]) == ([*means, f"{saved:.1f}x"], "-")
