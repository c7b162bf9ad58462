"""An edit reruns the stages whose result it can change, and no others."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from ptqd_export.stages import stage_code
from ptqd_export.stages.stage_code import PACKAGES, StageCode

ROOT = Path(__file__).parents[3]
STAGES = {
    "trace": "network.tracing",
    "decoder": "network.decoding",
    "encoder": "network.encoding",
    "preview": "network.decoding",
    "control": "network.controlling",
    "text": "network.text",
    "states": "network.states",
    "prepare": "network.preparation",
    "observe": "precisions.activations",
    "integer-speed": "precisions.integer_speed",
    "noise": "precisions.noisy_layers",
    "groups": "precisions.chosen_groups",
    "reconstruct": "precisions.learned_rounding",
    "quantize": "precisions.quantized_graph",
    "convert": "precisions.conversion",
    "cut": "precisions.cut_graphs",
    "statistics": "fit.statistics",
    "probes": "fit.budget",
    "pictures": "finish.sample_pictures",
}
"""Module of the function that makes each stage. Stages that build on one that reruns are made again too: their inputs are other folders."""

FIT = {"statistics", "probes"}
QUANTIZED = {"integer-speed", "quantize"}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's sources."""
    root = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.fixture(scope="module")
def keys(copied: Path) -> dict[str, dict[str, object]]:
    return _keys(copied)


def _keys(root: Path) -> dict[str, dict[str, object]]:
    code = StageCode(root)
    return {stage: code.key(f"ptqd_export.stages.{module}") for stage, module in STAGES.items()}


@pytest.mark.parametrize(
    ("edited", "rerun"),
    [
        ("engines/apps/serve/gateway.py", set()),
        ("engines/cluster/pool.py", set()),
        ("engines/backends/tensorrt/tensorrt_engine.py", set()),
        ("engines/cli.py", set()),
        ("ptqd_export/cli.py", set()),
        ("ptqd_export/report/page.py", set()),
        ("ptqd_export/commands/bisect.py", set()),
        ("ptqd_export/stages/run_build.py", set()),
        ("ptqd_export/report/pictures.py", {"pictures"}),
        ("calib/correction/joint_gain.py", FIT),
        ("calib/walk/budget.py", {"probes"}),
        ("calib/quantizers/scale_search.py", {*QUANTIZED, "groups", "noise", "reconstruct", "text"}),
        ("calib/rounding/soft_block.py", {"reconstruct", "quantize"}),
        ("ptqd_export/graph/passes/quantize_dequantize.py", QUANTIZED),
        ("ptqd_export/graph/passes/half_precision.py", {"decoder", "preview", "quantize", "convert"}),
        ("ptqd_export/models/text/tokenizer.py", STAGES.keys()),
        (
            "engines/chain/step.py",
            {*FIT, "pictures", "states", "prepare", "observe", "integer-speed", "groups", "noise", "reconstruct", "quantize", "convert"},
        ),
    ],
)
def test_an_edit_reruns_the_stages_that_run_the_edited_code(
    copied: Path, keys: dict[str, dict[str, object]], edited: str, rerun: set[str]
) -> None:
    path = copied / edited
    text = path.read_text()
    path.write_text(f"{text}\nPLANTED = 1\n")
    try:
        after = _keys(copied)
    finally:
        path.write_text(text)
    assert {stage for stage in STAGES if keys[stage] != after[stage]} == set(rerun)


@pytest.mark.parametrize(
    ("package", "spared"),
    [
        ("torch", set()),
        ("onnx", set()),
        ("diffusers", set()),
        ("onnxruntime", set()),
        ("onnxscript", {"states", "statistics", "probes", "pictures"}),
        ("scipy", STAGES.keys() - {"groups", "quantize", "convert", "statistics", "probes"}),
    ],
)
def test_another_version_of_a_library_reruns_the_stages_that_use_it(
    monkeypatch: pytest.MonkeyPatch, copied: Path, keys: dict[str, dict[str, object]], package: str, spared: set[str]
) -> None:
    monkeypatch.setattr(stage_code, "version", lambda name: "0.0" if name == package else version(name))
    after = _keys(copied)
    assert {stage for stage in STAGES if keys[stage] == after[stage]} == set(spared)


def test_every_stage_of_a_build_is_in_the_table() -> None:
    modules = {f"ptqd_export/stages/{module.replace('.', '/')}.py" for module in STAGES.values()}
    makers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ptqd_export" / "stages").rglob("*.py")
        if "reporter: Reporter" in (text := path.read_text()) and "\ndef make_" in text
    }
    assert makers <= modules
