"""The picture of a frontier shows what its file says; nothing is drawn at an error of zero."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.studies.plot_frontier import plot


def _chain(kind: str, name: str, cost: float, error: float, *, measured: bool = True) -> dict[str, Any]:
    found = {"error": 1.1 * error, "log_standard_error": 0.1, "mean_square": error}
    return {"kind": kind, "precisions": [name] * 2, "cost": cost, "predicted_error": error, "measured": found if measured else None}


RECORD: dict[str, Any] = {
    "cost": "bit_operations",
    "chains": [
        _chain("uniform", "w4a8", 0.04, 1e-2),
        _chain("uniform", "fp32", 1.0, 0.0),
        _chain("snr", "w4a8", 0.06, 8e-3),
        _chain("budget", "w4a8", 0.06, 1e-3),
        _chain("frontier", "w4a8", 0.04, 1e-2),
        _chain("frontier", "w8a8", 0.07, 1e-4, measured=False),
        _chain("frontier", "fp32", 1.0, 0.0),
        _chain("precisions", "w8a8", 0.06, 5e-3),
        _chain("mixture", "w8a8", 0.05, 5e-3),
    ],
    "fewer_steps": [{"sampler": "dpm++2m", "steps": 1, "precision": "w8a8", "cost": 0.03, "measured": {"error": 2e-2}}],
    "prediction": {"samples": 32, "chains": 5, "pearson": 0.987, "spearman": 0.9},
}


@pytest.fixture(autouse=True)
def matplotlib() -> None:
    pytest.importorskip("matplotlib")


def test_a_vector_picture_holds_the_figures_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    plot(RECORD, tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text()
    for shown in (
        "Pearson 0.987",
        "5 real chains of 32 samples",
        "w4a8",
        "snr",
        "bit operations of the chain",
        "precisions alone",
        "w8a8, 1 steps of dpm++2m",
    ):
        assert shown in text
    assert "fp32" not in text
    assert "with reuse" not in text


def test_times_and_files_without_mixtures_or_correlation_are_drawn_too(tmp_path: Path) -> None:
    few = [chain for chain in RECORD["chains"] if chain["kind"] != "mixture"]
    none = {"samples": 0, "chains": 0, "pearson": None, "spearman": None}
    plot({"cost": "time", "chains": few, "fewer_steps": [], "prediction": none}, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys, tools.studies.plot_frontier; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
