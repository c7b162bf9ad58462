"""The table of mixed chains: real ones, by predicted time."""

from __future__ import annotations

from typing import Any

from tools.studies.mixed_floats import rows


def _chain(kind: str, precisions: list[str], cost: float, error: float | None) -> dict[str, Any]:
    measured = None if error is None else {"error": error, "log_standard_error": 0.1, "mean_square": error}
    return {"kind": kind, "precisions": precisions, "cost": cost, "bound": 1.0, "predicted_error": 0.5, "measured": measured}


def test_rows_are_the_real_chains_named_by_their_runs() -> None:
    chains = [
        _chain("uniform", ["fp8"] * 4, 0.8, 0.01),
        _chain("frontier", ["nvfp4", "nvfp4", "fp8", "fp8"], 0.6, 0.02),
        _chain("budget", ["nvfp4", "nvfp4", "fp8", "fp8"], 0.6, 0.02),
        _chain("frontier", ["nvfp4", "fp8", "fp8", "fp8"], 0.7, None),
        _chain("mixture", ["fp8", "nvfp4", "fp8", "nvfp4"], 0.6, 0.03),
    ]
    fewer = {"sampler": "ddim", "steps": 2, "precision": "fp8", "cost": 0.4, "measured": {"error": 0.5}}
    assert list(rows({"chains": chains, "fewer_steps": [fewer]})) == [
        ("2 nvfp4, 2 fp8", "0.600", "0.02", "0.5"),
        ("4 fp8", "0.800", "0.01", "0.5"),
        ("fp8, 2 steps of ddim", "0.400", "0.5", "-"),
    ]
