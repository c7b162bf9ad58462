"""The notebook in `examples/` is a valid notebook, uses public names alone, and runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engines
import ptqd_export
import ptqd_export.diffusers

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "examples" / "first_bundle.ipynb").read_text())
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_has_the_format_that_notebook_programs_read() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    keys = {"markdown": {"cell_type", "id", "metadata", "source"}}
    keys["code"] = keys["markdown"] | {"execution_count", "outputs"}
    for cell in NOTEBOOK["cells"]:
        assert set(cell) == keys[cell["cell_type"]]
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_it_uses_public_names_alone() -> None:
    source = "\n".join(CODE)
    used = re.findall(r"\b(engines|ptqd_export)\.(\w+)", "\n".join(line for line in source.splitlines() if "import" not in line))
    assert {module for module, _ in used} == {"engines", "ptqd_export"}
    for module, name in used:
        assert name in {"engines": engines, "ptqd_export": ptqd_export}[module].__all__
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    own = [node for node in imported if str(node.module).startswith(("engines", "ptqd_export"))]
    assert [(node.module, [alias.name for alias in node.names]) for node in own] == [("ptqd_export.diffusers", ["use_bundle"])]
    assert "use_bundle" in ptqd_export.diffusers.__all__


@pytest.mark.slow
def test_it_runs_and_the_correction_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (tmp_path / "examples").mkdir()
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    monkeypatch.chdir(tmp_path / "examples")
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(CODE):
        exec(compile(cell, f"cell {number}", "exec"), names)
    uncorrected, corrected = map(
        float, re.findall(r"corrected: mean difference to full precision ([\d.]+) of 255", capsys.readouterr().out)
    )
    assert 2 * corrected < uncorrected
    assert len(pyplot.get_fignums()) == 5
    pyplot.close("all")
    assert names["pictures"].shape == (8, 32, 32, 3)
    assert names["pictures"].std() > 0.1
    assert set(names["bundle"].schedules) == {"default", "ten"}
    assert names["previews"][-1].dtype == np.uint8
