"""A fixture that collects the stages of a test's builds."""

from __future__ import annotations

import pytest

from tests.ptqd_export.stages.whole_builds import FinishedStages


@pytest.fixture
def finished() -> FinishedStages:
    """Collects the finished stages of builds that get it as `on_progress`."""
    return FinishedStages()
