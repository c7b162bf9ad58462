"""The table of the noisiest layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engines.errors import UsageError
from ptqd_export.plan import PlanFile, load_plan
from tools.studies.layer_noise import HEADER, built_sources, main

if TYPE_CHECKING:
    from tests.tools.conftest import Digits

ROOT = Path(__file__).parents[3]


def test_a_plan_that_was_not_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has not been built"):
        built_sources(tmp_path)


def test_the_table_has_the_noisiest_layers_first(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    written = load_plan(ROOT / "tools" / "digits" / "plan.json")
    monkeypatch.setattr("tools.studies.layer_noise.load_plan", lambda _: PlanFile(written.plan, written.folder, digits.folder))
    lines = CliRunner().invoke(main, ["plan.json", "--precision", "w2a16", "--top", "999"]).output.splitlines()
    assert lines[0] == f"| {' | '.join(HEADER)} |"
    shares = [[float(cell.rstrip("% |")) for cell in line.split(" | ")[1:]] for line in lines[2:]]
    noise, macs = zip(*shares, strict=True)
    assert list(noise) == sorted(noise, reverse=True)
    assert noise[0] > macs[0] + 5, "the noisiest layer has more of the noise than of the work"
    assert (sum(noise), sum(macs)) == pytest.approx((100, 100), abs=2)
