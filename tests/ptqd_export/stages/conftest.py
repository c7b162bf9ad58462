"""A fixture that collects the stages of a test's builds."""

from __future__ import annotations

import pytest

import ptqd_export.stages.run_build as module
from ptqd_export.stages.stage_cache import Finished


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[Finished]:
    """The stages of all builds that the test runs, collected instead of printed as the final table."""
    stages: list[Finished] = []
    monkeypatch.setattr(module, "print_summary", lambda *given: stages.extend(given[-1]))
    return stages
