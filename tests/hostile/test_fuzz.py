"""Damaged bundles end in one clear error, or give the very same samples: a quick look; `test_fuzz_proof.py` is the long one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptqd_export.cli import main as export
from tests.conftest import TinyBundle
from tests.hostile.checks import CHECKS, in_process, remember
from tests.hostile.conftest import Subject
from tests.hostile.mutations import damaged_json
from tests.hostile.readers import KINDS, readers
from tests.hostile.worker import Worker
from tests.ptqd_export.report.conftest import _reported

QUICK = settings(max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("kind", ["damage", "contract", "archive"])
def test_damage_is_refused_or_harmless(own_bundle: Subject, kind: str) -> None:
    subject, found = remember(own_bundle, in_process), Counter[str]()

    @QUICK
    @given(st.data())
    def check(data: Any) -> None:
        found[CHECKS[kind](subject, in_process, data)] += 1

    check()
    assert found["refused"] > 20


def test_damaged_graph_is_refused_or_another_network(own_bundle: Subject) -> None:
    worker, found = Worker("engines.cli"), Counter[str]()

    @settings(QUICK, max_examples=30)
    @given(st.data())
    def check(data: Any) -> None:
        found[CHECKS["graph"](subject, worker.run, data)] += 1

    try:
        subject = remember(own_bundle, worker.run)
        check()
    finally:
        worker.close()
    assert found["refused"] > 10


def test_whatever_else_is_read_is_refused_or_read(tmp_path: Path) -> None:
    by_kind, found = readers(tmp_path), Counter[tuple[str, str]]()
    assert tuple(by_kind) == KINDS

    @settings(QUICK, max_examples=len(KINDS) * 50)
    @given(st.sampled_from(KINDS), st.data())
    def check(kind: str, data: Any) -> None:
        found[kind, by_kind[kind].check(data)] += 1

    check()
    assert all(found[kind, "refused"] > 3 for kind in KINDS)


def test_damaged_statistics_and_plans_are_refused_by_the_report(tiny: TinyBundle, tmp_path: Path) -> None:
    reported, found = _reported(tiny.folder, tmp_path / "bundle"), Counter[int]()
    names = ("plan.json", "statistics/onnxruntime/w4a8.json", "schedules/default.json")

    @settings(QUICK, max_examples=25)
    @given(st.sampled_from(names), st.data())
    def check(name: str, data: Any) -> None:
        whole = (reported.folder / name).read_bytes()
        reported.write(name, data.draw(damaged_json(json.loads(whole))))
        result = CliRunner().invoke(export, ["report", str(reported.folder), "--output", str(tmp_path / "page.html")])
        reported.write(name, whole.decode())
        assert result.exit_code == 0 or (result.stderr.startswith("error: ") and "this is a bug" not in result.stderr), result.stderr[:500]
        found[result.exit_code] += 1

    check()
    assert found[1] > 10
