"""What the end of a build proposes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ptqd_export.stages import summary

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


@pytest.mark.parametrize("saturates", [False, True])
def test_weights_of_7_bits_are_proposed_where_8_bit_products_saturate(
    class_build: Built, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    monkeypatch.setattr(summary, "saturates", lambda _config: saturates)
    assert ("w7a8" in summary._saturation(class_build.context)) == saturates


def test_nothing_is_proposed_where_another_runtime_runs_the_graphs(cross_trt_build: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "saturates", lambda _config: True)
    assert summary._saturation(cross_trt_build.context) == ""
