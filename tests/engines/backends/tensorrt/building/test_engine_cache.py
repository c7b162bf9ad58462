"""Engines on disk: built once, found again, and another one as soon as anything that they depend on is another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.backends.tensorrt.building import engine_cache
from engines.backends.tensorrt.building.build_spec import BatchProfile, BuildSpec
from engines.backends.tensorrt.building.engine_cache import EngineCache, EngineKey
from engines.backends.tensorrt.device.device_identity import DeviceIdentity, device_identity
from engines.backends.tensorrt.flavour import FLAVOURS
from engines.errors import PtqdError, UsageError
from tests.emulated_device.emulated_device import EmulatedDevice

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def rtx(graph: Path) -> BuildSpec:
    return BuildSpec(graph, "tensorrt-rtx", BatchProfile(1, 2, 4))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def engines(cache: EngineCache) -> list[Path]:
    return sorted(cache.folder.glob("*.engine"))


def never(*arguments: Any, **options: Any) -> None:
    raise AssertionError(f"built with {arguments}, {options}")


def test_engine_is_built_once_and_found_again(cache: EngineCache, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"(?s)no engine of this graph.*ptqd-export engines"):
        cache.find(rtx(graph))
    first = cache.get(rtx(graph))
    monkeypatch.setattr(engine_cache, "build_engine", never)
    again = cache.get(rtx(graph))
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.path == again.path == cache.find(rtx(graph)) == engines(cache)[0]
    key = json.loads(first.path.with_suffix(".json").read_text())
    assert key["flavour"] == "tensorrt-rtx"
    assert key["device"] == {"compute_capability": "any", "driver": "any"}


def test_engine_that_was_damaged_is_refused_and_built_again(cache: EngineCache, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(spec: BuildSpec, output: Path, **_: Any) -> None:
        output.write_bytes(spec.graph.read_bytes())

    monkeypatch.setattr(engine_cache, "build_engine", build)
    whole = cache.get(rtx(graph)).path
    assert cache.find(rtx(graph)) == whole
    for damage in (
        lambda: whole.write_bytes(b"engine"),
        whole.with_suffix(".json").unlink,
        lambda: whole.with_suffix(".json").write_text("{"),
    ):
        damage()
        with pytest.raises(PtqdError, match=r"(?s)changed or damaged.*ptqd-export engines"):
            cache.find(rtx(graph))
        assert not cache.get(rtx(graph)).from_cache
        assert cache.find(rtx(graph)).read_bytes() == graph.read_bytes()


def test_key_changes_with_everything_that_an_engine_depends_on(graph: Path) -> None:
    key = EngineKey.of(rtx(graph))
    others = [
        replace(key, flavour="tensorrt"),
        replace(key, version="0"),
        replace(key, device=DeviceIdentity("8.9", "any")),
        replace(key, device=DeviceIdentity("any", "13000")),
        EngineKey.of(replace(rtx(graph), profile=BatchProfile(1, 2, 8))),
        EngineKey.of(replace(rtx(graph), workspace_gib=1.0)),
        EngineKey.of(replace(rtx(graph), compute_capabilities=("SM89",))),
    ]
    weights, whole = graph.with_name(f"{graph.name}.data"), graph.read_bytes()
    onnx.save(onnx.load(graph), graph, save_as_external_data=True, location=weights.name, size_threshold=0)
    others.append(EngineKey.of(rtx(graph)))
    weights.write_bytes(b"other")
    others.append(EngineKey.of(rtx(graph)))
    graph.write_bytes(whole)
    assert EngineKey.of(rtx(graph)) == key
    graph.write_bytes(whole + b"\0")
    others.append(EngineKey.of(rtx(graph)))
    assert len({key.digest, *(other.digest for other in others)}) == 11


def test_engines_of_the_classic_flavour_belong_to_device_and_driver(emulated: EmulatedDevice) -> None:
    del emulated
    assert device_identity(FLAVOURS["tensorrt"]) == DeviceIdentity("8.9", "13000")


def test_graph_moved_elsewhere_is_the_same_graph(cache: EngineCache, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tmp_path / "elsewhere" / graph.name
    moved.parent.mkdir()
    moved.write_bytes(graph.read_bytes())
    cache.get(rtx(graph))
    monkeypatch.setattr(engine_cache, "build_engine", never)
    assert cache.get(rtx(moved)).from_cache


def test_failed_build_leaves_nothing_and_the_next_succeeds(cache: EngineCache, make_graph: Callable[..., Path]) -> None:
    killed: list[int] = []

    def kill(progress: Any) -> None:
        if not killed:
            killed.append(progress.pid)
            os.kill(progress.pid, signal.SIGKILL)

    spec = rtx(make_graph(layers=12))
    with pytest.raises(PtqdError, match="was killed"):
        cache.get(spec, kill)
    assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]
    assert not cache.get(spec, kill).from_cache
    assert len(engines(cache)) == 1


def test_timing_cache_is_given_to_the_flavour_that_has_one(cache: EngineCache, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def build(spec: BuildSpec, output: Path, *, timing_cache: Path | None, on_progress: Any) -> None:
        del spec, on_progress
        seen.append(timing_cache)
        output.write_bytes(b"engine")

    key = replace(EngineKey.of(rtx(graph)), version="10.9", device=DeviceIdentity("8.9", "13000"))
    monkeypatch.setattr(EngineKey, "of", lambda spec: replace(key, flavour=spec.flavour))
    monkeypatch.setattr(engine_cache, "build_engine", build)
    for flavour in FLAVOURS:
        cache.get(replace(rtx(graph), flavour=flavour))
    assert seen == [cache.folder / "tensorrt-10.9-8.9.timings", None]


def ask(folder: Path, graph: Path, together: Barrier, answers: Any) -> None:
    together.wait()
    engine = EngineCache(folder).get(rtx(graph))
    answers.put((engine.from_cache, engine.path.stat().st_size))


def test_two_processes_that_ask_at_once_build_once(cache: EngineCache, graph: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    together, answers = spawn.Barrier(2), spawn.Queue()
    processes = [spawn.Process(target=ask, args=(cache.folder, graph, together, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    (one, size), (two, same) = answers.get(timeout=60), answers.get(timeout=60)
    for process in processes:
        process.join()
    assert sorted([one, two]) == [False, True]
    assert size == same == engines(cache)[0].stat().st_size
