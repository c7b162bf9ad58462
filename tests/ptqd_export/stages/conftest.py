"""The stages of the builds that a test runs."""

from __future__ import annotations

import pytest

import ptqd_export.stages.run_build as module
from ptqd_export.stages.stage_cache import Finished


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Finished]:
    """The stages of the builds that a test runs, in place of the table at the end."""
    stages: list[Finished] = []
    monkeypatch.setattr(module, "print_summary", lambda *given: stages.extend(given[-1]))
    return stages
