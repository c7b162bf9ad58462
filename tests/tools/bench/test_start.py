"""Start, swaps and memory are measured where they happen."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tools.bench import start
from tools.bench.case import Case
from tools.bench.engine_memory import EngineMemory
from tools.bench.memory import memory_mib
from tools.bench.start import Memory, Start, measure_start

if TYPE_CHECKING:
    from tests.conftest import TinyBundle


@pytest.mark.slow
def test_a_start_is_measured(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "ROUNDS", 2)
    found = measure_start(Case(tiny.folder.parent, 2))
    assert 0.05 < found.seconds < 60
    assert 20 < found.memory.before_mib < found.memory.peak_mib < 2000
    assert 5 < found.memory.file_mib < found.memory.peak_mib
    assert abs(found.swap_milliseconds) < 1000
    assert found.graph_mib == {name: (tiny.folder / f"graphs/onnxruntime/{name}.onnx").stat().st_size / 2**20 for name in tiny.networks}
    assert found.engines.keys() == found.graph_mib.keys()
    assert all(0 < engine.weights_mib < 0.1 for engine in found.engines.values())
    assert all(0 < engine.activations_mib < 10 for engine in found.engines.values())
    found.save(tmp_path / "start.json")
    assert Start.load(tmp_path / "start.json") == found


def test_processes_whose_memory_is_measured_import_what_samplers_import() -> None:
    script = "import sys, tools.bench.start; print(sorted({'onnx', 'onnx_ir', 'torch', 'diffusers'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_engines_take_is_held_against_what_they_need() -> None:
    engines = {"fp32": EngineMemory(100.0, 20.0), "w8a8": EngineMemory(30.0, 25.0)}
    found = Start(0.5, 0.1, Memory(50.0, 260.0, 90.0), engines, {}, 1)
    assert found.largest == engines["fp32"]
    assert found.against_largest == pytest.approx(210 / 120)
    assert found.against_all == pytest.approx(210 / 150)


def test_the_most_memory_is_remembered() -> None:
    with mmap.mmap(-1, 64 * 2**20, flags=mmap.MAP_PRIVATE) as held:
        held[:] = bytes(64 * 2**20)
        during = memory_mib("VmRSS")
    assert memory_mib("VmHWM") >= during - 1
    assert memory_mib("VmRSS") < during - 60
