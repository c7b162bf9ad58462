"""One local Ray cluster for all tests that need one: starting it takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engines.cluster.session import LOCAL, Cluster, joined


@pytest.fixture(scope="session")
def ray(monkeypatch_session: pytest.MonkeyPatch) -> Iterator[Any]:
    """Connected to a cluster of this machine; what is tested finds the connection there."""
    monkeypatch_session.setattr("engines.cluster.session.cores", lambda: 2)
    with joined(Cluster(LOCAL)) as module:
        yield module


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
