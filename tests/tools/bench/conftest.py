"""The small digits bundle as a case of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.bench.case import Case

if TYPE_CHECKING:
    from tests.tools.conftest import Digits


@pytest.fixture(scope="module")
def digits_case(digits: Digits) -> Case:
    plan = json.loads((digits.folder / "plan.json").read_text())
    plan["model"]["path"] = str(Path(__file__).parents[3] / "tools" / "digits" / "model")
    (digits.folder.parent / "plan.json").write_text(json.dumps(plan))
    return Case(digits.folder.parent, 2)
