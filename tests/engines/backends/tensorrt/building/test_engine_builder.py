"""The real TensorRT-RTX builder in its child process: what it builds, and what becomes of everything that goes wrong in there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_builder import EngineProgress, build_engine
from engines.errors import MissingBackendError, PtqdError

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


ROOT = Path(__file__).parents[5]
ASK = """
import sys
from pathlib import Path
from engines.host.interruption import terminated_by_exception
from engines.backends.tensorrt.building.build_spec import BuildSpec
from engines.backends.tensorrt.building.engine_builder import build_engine
with terminated_by_exception():
    build_engine(BuildSpec.from_json(sys.argv[1]), Path(sys.argv[2]), on_progress=lambda progress: print(progress.pid, flush=True))
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "engine"


def rtx(graph: Path) -> BuildSpec:
    return BuildSpec(graph, "tensorrt-rtx", BatchProfile(1, 2, 4))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running(pid: int) -> bool:
    """Alive, and not only waiting for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_engine_is_built_and_progress_only_rises(graph: Path, output: Path) -> None:
    seen: list[EngineProgress] = []
    build_engine(rtx(graph), output, on_progress=seen.append)
    assert output.stat().st_size > 10_000
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert len(set(fractions)) > 20
    assert "Building engine" in {progress.phase for progress in seen}


def test_options_reach_the_builder_and_compute_capabilities_are_those_that_the_flavour_knows(graph: Path, output: Path) -> None:
    build_engine(replace(rtx(graph), workspace_gib=0.5, compute_capabilities=("SM89", "SM120")), output)
    assert output.stat().st_size > 10_000
    with pytest.raises(PtqdError, match=r"(?s)SM35.*expected: SM75 or"):
        build_engine(replace(rtx(graph), compute_capabilities=("SM35",)), output)


def test_graph_that_the_parser_refuses_is_an_error_with_the_nodes_name(make_graph: Callable[..., Path], output: Path) -> None:
    with pytest.raises(PtqdError, match=r"(?s)parser refuses.*node quantize0 \(QuantizeLinear\).*[Zz]ero point") as caught:
        build_engine(rtx(make_graph(zero_point=3)), output)
    assert caught.value.exit_code == 1
    assert "info:" not in str(caught.value)


def test_crash_of_the_builder_is_one_error_with_its_last_messages(make_graph: Callable[..., Path], graph: Path, output: Path) -> None:
    with pytest.raises(PtqdError, match=r"(?s)builder crashed \(SIGSEGV\).*crashes\.onnx for tensorrt-rtx.*last messages:\n +\w+: "):
        build_engine(rtx(make_graph("crashes", scale="r")), output)
    assert not output.exists()
    build_engine(rtx(graph), output)
    assert output.stat().st_size > 10_000


def test_builder_killed_in_mid_build_is_one_error_and_the_next_build_succeeds(make_graph: Callable[..., Path], output: Path) -> None:
    pids: set[int] = set()

    def kill(progress: EngineProgress) -> None:
        if progress.pid not in pids:
            pids.add(progress.pid)
            os.kill(progress.pid, signal.SIGKILL)

    spec = rtx(make_graph(layers=12))
    with pytest.raises(PtqdError, match=r"(?s)was killed: the machine may be out of memory.*workspace_gib"):
        build_engine(spec, output, on_progress=kill)
    assert len(pids) == 1
    assert not output.exists()
    build_engine(spec, output)
    assert output.stat().st_size > 10_000


def test_builder_that_hangs_is_ended_and_one_error(make_graph: Callable[..., Path], output: Path) -> None:
    pids: set[int] = set()

    def stop(progress: EngineProgress) -> None:
        pids.add(progress.pid)
        os.kill(progress.pid, signal.SIGSTOP)

    with pytest.raises(PtqdError, match=r"hangs: it reported nothing for 1\.5 seconds"):
        build_engine(rtx(make_graph(layers=12)), output, on_progress=stop, patience=1.5)
    (pid,) = pids
    assert not alive(pid)


def test_child_ends_with_an_error_of_ours(make_graph: Callable[..., Path], output: Path) -> None:
    pids: list[int] = []

    def interrupt(progress: EngineProgress) -> None:
        pids.append(progress.pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(rtx(make_graph(layers=12)), output, on_progress=interrupt)
    (pid,) = pids
    assert not alive(pid)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_builder_ends_with_the_process_that_asked_for_the_engine(
    make_graph: Callable[..., Path], output: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", ASK, rtx(make_graph(layers=40)).to_json(), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert running(pid)
        parent.send_signal(number)
        parent.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not output.exists()


def test_flavour_that_is_not_installed_is_a_missing_backend(graph: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingBackendError, match=r"tensorrt is not installed.*\n.*\n.*\[gpu\]") as caught:
        build_engine(replace(rtx(graph), flavour="tensorrt"), output)
    assert caught.value.exit_code == 3


def test_spec_survives_the_way_to_the_child(graph: Path) -> None:
    spec = replace(rtx(graph), workspace_gib=0.5, compute_capabilities=("SM89",))
    assert BuildSpec.from_json(spec.to_json()) == spec
