"""A fixture that writes plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ptqd_export.plan.plans import SHORTEST, Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes the shortest plan with some sections replaced."""

    def write_plan(**sections: object) -> Path:
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(SHORTEST | sections))
        return path

    return write_plan
