"""The page says what the files say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.bench import page as bench_page
from tools.bench.engine_memory import EngineMemory
from tools.bench.page import page, table
from tools.bench.profile import Profile
from tools.bench.result import Machine, Result, Row
from tools.bench.start import Memory, Start

MACHINE = Machine("Some CPU", 2, ("avx2",), {"python": "3.12", "torch": "2.0"})


def _row(title: str, chain: float, network: float, snr: float | None) -> Row:
    return Row(title, chain, network, 1.25, 512.4, 100.0, snr)


@pytest.fixture
def result() -> Result:
    rows = {
        "eager": _row("diffusers, PyTorch eager", 4.0, 0.2, 120.0),
        "fp32": _row("FP32, ONNX Runtime", 2.0, 0.1, None),
        "w8a8": _row("ours, W8A8", 1.0, 0.04, 31.25),
    }
    return Result("digits", "digits U-Net", 1_500_000, 8, 20, 20, 1.5, 5, MACHINE, rows, {"compile": "no compiler"})


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_are_against_eager_and_against_full_precision(result: Result) -> None:
    lines = [_cells(line) for line in table(result) if line.startswith("| ")]
    assert lines[2] == ["diffusers, PyTorch eager", "2.00", "4000.0", "200.00", "1.00x", "0.50x", "0.50x", "120.0", "1.2", "512"]
    assert lines[4] == ["ours, W8A8", "8.00", "1000.0", "40.00", "4.00x", "2.00x", "2.50x", "31.2", "1.2", "512"]
    assert len({len(cells) for cells in lines}) == 1


def test_who_is_left_out_is_told(result: Result) -> None:
    assert "Left out: diffusers, `torch.compile`: no compiler" in list(table(result))


def test_without_eager_its_ratio_is_left_empty(result: Result) -> None:
    rows = {name: row for name, row in result.rows.items() if name != "eager"}
    lines = [_cells(line) for line in table(replace(result, rows=rows)) if line.startswith("| ")]
    assert lines[2][:6] == ["FP32, ONNX Runtime", "4.00", "2000.0", "100.00", "", "1.00x"]


def test_an_excerpt_of_the_chain_says_so(result: Result) -> None:
    assert next(iter(table(replace(result, steps=5)))) == "Batch 8, 5 of 20 steps, median of 5 rounds:"


def test_the_page_has_a_section_a_model_its_batches_in_order_and_one_machine(result: Result) -> None:
    other = replace(result, model="dit-s2", title="DiT", batch=1)
    text = page([other, result, replace(result, batch=1)])
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## digits U-Net", "## DiT"]
    assert text.index("Batch 1,") < text.index("Batch 8,") < text.index("## DiT")
    assert text.count("Measured on Some CPU, 2 cores, avx2; python 3.12, torch 2.0.") == 1


def test_the_profile_adds_up_and_names_its_own_machine(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_page, "OPERATORS", 2)
    other = Machine("Other CPU", 4, ("avx512_vnni",), {"torch": "2.0", "onnxruntime": "1.0"})
    rows = {"fp32": {"Conv": 60.0, "Mul": 3.0, "Add": 2.0}, "w8a8": {"QLinearConv": 20.0, "Mul": 3.0, "Add": 2.0}}
    text = page([result], profiles={"digits": Profile(1, other, rows), "dit-s2": Profile(1, other, rows)})
    assert "at batch 1 spends its time, in milliseconds, on Other CPU, 4 cores, avx512_vnni; onnxruntime 1.0:" in text
    assert "Measured on Some CPU" in text
    assert [_cells(line) for line in text.splitlines() if line.startswith("| ")][-6:] == [
        ["operator", "FP32, ONNX Runtime", "ours, W8A8, ONNX Runtime"],
        ["---", "---:", "---:"],
        ["`Conv`", "60.00 (92%)", ""],
        ["`QLinearConv`", "", "20.00 (80%)"],
        ["others", "5.00 (8%)", "5.00 (20%)"],
        ["all", "65.00", "25.00"],
    ]


def test_the_start_is_told_with_its_model(result: Result) -> None:
    engines = {"fp32": EngineMemory(100.0, 20.0), "w8a8": EngineMemory(30.04, 25.0)}
    start = Start(0.456, 0.031, Memory(45.2, 255.4, 99.6), engines, {"fp32": 6.66, "w8a8": 1.78}, 1)
    text = page([result], {"digits": start})
    assert "begins its first batch 0.46 s after" in text
    assert "adds 0.03 ms to a network call at batch 1" in text
    assert "Sizes of the graphs in MiB: fp32 6.7, w8a8 1.8." in text
    assert "sampling peaks at 255 MiB, 45 MiB of them in use before the first engine; 100 MiB are file pages" in text
    assert "in MiB, constants of fp32 100.0, w8a8 30.0, and activations of 20.0 for the largest engine." in text
    assert "1.40 times the sum of these, and 1.75 times what the largest engine needs alone." in text
    assert "begins its first batch" not in page([result], {"dit-s2": start})


def test_a_file_holds_everything(result: Result, tmp_path: Path) -> None:
    profile = Profile(1, MACHINE, {"fp32": {"Conv": 60.0, "Mul": 5.0}})
    for stored in (result, profile):
        stored.save(tmp_path / "result.json")
        assert type(stored).load(tmp_path / "result.json") == stored
