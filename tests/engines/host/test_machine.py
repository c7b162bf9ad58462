"""The machine's description, on machines that say more or less of themselves."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from engines.host import machine
from engines.host.machine import cores, instructions, machine_name, processor, told_instructions


def _cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read_text(path: Path) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read_text)


def test_processor_is_the_systems_name_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _cpuinfo(monkeypatch, "processor\t: 0\nmodel name\t: Some CPU @ 2.4GHz\nflags\t: a b\n\nmodel name\t: Another\n")
    assert processor() == "Some CPU @ 2.4GHz"


@pytest.mark.parametrize("text", [None, "processor\t: 0\n"])
def test_processor_falls_back_on_python(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    _cpuinfo(monkeypatch, text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert processor() == "riscv64"


@pytest.mark.parametrize("key", ["flags", "Features"])
def test_instructions_are_those_of_the_first_core(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    _cpuinfo(monkeypatch, f"model name\t: Some CPU\n{key}\t\t: avx2 fma\n\n{key}\t\t: another\n")
    assert instructions() == {"avx2", "fma"}


@pytest.mark.parametrize("text", [None, "processor\t: 0\n"])
def test_instructions_that_the_system_does_not_say_are_none(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    _cpuinfo(monkeypatch, text)
    assert instructions() == frozenset()


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="compares two names of one instruction")
def test_the_processor_tells_this_process_what_the_system_lists() -> None:
    listed = {"avx2": "AVX2", "avx512f": "AVX512F", "fma": "FMA3"}
    assert {told for name, told in listed.items() if name in instructions()} == told_instructions() & set(listed.values())


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    assert cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert cores() == 12


def test_name_is_a_plain_folder_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "processor", lambda: "Some(R) CPU/x @ 2.4GHz ")
    monkeypatch.setattr(machine, "cores", lambda: 8)
    assert machine_name() == "some-r-cpu-x-2-4ghz-8-cores"
