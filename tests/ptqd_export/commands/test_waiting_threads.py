"""PyTorch's threads sleep while they wait, unless the user has chosen."""

from __future__ import annotations

import os

import pytest

from ptqd_export.commands.waiting_threads import wait_without_spinning


@pytest.mark.parametrize(("chosen", "found"), [(None, "passive"), ("active", "active")])
def test_threads_sleep_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch, chosen: str | None, found: str) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == found
