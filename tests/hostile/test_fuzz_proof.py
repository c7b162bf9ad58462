"""The long look: thousands of damaged files, read in child processes of little memory. `pytest -m slow -s tests/hostile`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.checks import CHECKS, remember
from tests.hostile.conftest import Subject
from tests.hostile.readers import KINDS, readers
from tests.hostile.worker import Worker

EXAMPLES = {"damage": 1000, "contract": 1000, "archive": 500, "graph": 1000}
READER_EXAMPLES = 1000
LONG = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def tell(kind: str, found: Counter[str]) -> None:
    listed = ", ".join(f"{count} {what}" for what, count in sorted(found.items()))
    sys.stderr.write(f"\n{kind}: {sum(found.values())} inputs: {listed}\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXAMPLES)
def test_bundles(own_bundle: Subject, kind: str) -> None:
    worker, found = Worker("engines.cli"), Counter[str]()

    @settings(LONG, max_examples=EXAMPLES[kind])
    @given(st.data())
    def check(data: Any) -> None:
        found[CHECKS[kind](subject, worker.run, data)] += 1

    try:
        subject = remember(own_bundle, worker.run)
        check()
    finally:
        worker.close()
        tell(kind, found)
    assert sum(found.values()) >= EXAMPLES[kind]
    assert not found["crashed"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_other_files(tmp_path: Path, kind: str) -> None:
    reader, found = readers(tmp_path)[kind], Counter[str]()

    @settings(LONG, max_examples=READER_EXAMPLES)
    @given(st.data())
    def check(data: Any) -> None:
        found[reader.check(data)] += 1

    try:
        check()
    finally:
        tell(kind, found)
    assert sum(found.values()) >= READER_EXAMPLES
