"""Resumable stages: when they are reused, when not, and what a failure leaves."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.host.room import NoRoomError
from ptqd_export.stages.reporter import Reporter
from ptqd_export.stages.stage_cache import StageCache, StageMaker
from ptqd_export.stages.stage_code import StageCode
from tests.dying import every_death
from tests.ptqd_export.stages.recorder import Recorder
from tests.small_disks import largest_file


@dataclass
class Maker:
    """Writes one file; counts its calls."""

    content: str = "made"
    calls: int = 0

    def __call__(self, folder: Path, reporter: Reporter) -> None:
        self.calls += 1
        assert list(folder.iterdir()) == []
        reporter.advance(1, 2)
        (folder / "result").write_text(self.content)


@pytest.fixture(autouse=True)
def collecting_new_objects() -> Iterator[None]:
    """Have the collections between stages look at new objects only, as in a build."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def cache(tmp_path: Path) -> Callable[..., StageCache]:
    """A cache as a new run of the program would open it."""
    return lambda **options: StageCache(tmp_path / "stages", Recorder(), **options)


def _names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir()) if folder.exists() else []


def test_stage_is_made_once_and_reused_by_the_next_run(cache: Callable[..., StageCache]) -> None:
    make = Maker()
    folder = cache().run("trace", {"model": "m", "steps": 3}, make)
    assert (folder / "result").read_text() == "made"
    assert cache().run("trace", {"steps": 3, "model": "m"}, make) == folder
    assert make.calls == 1


def test_reporter_is_told_of_work_and_of_reuse(tmp_path: Path) -> None:
    recorder = Recorder()
    StageCache(tmp_path, recorder).run("trace", {}, Maker())
    StageCache(tmp_path, recorder).run("trace", {}, Maker())
    assert recorder.told == [("start", "trace"), ("advance", 1, 2), ("finish", "trace", False), ("finish", "trace", True)]


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("trace", {"model": "other", "n": [1, 2]}),
        ("trace", {"model": "m", "n": [2, 1]}),
        ("trace", {"model": "m"}),
        ("other", {"model": "m", "n": [1, 2]}),
    ],
)
def test_other_inputs_are_another_stage(cache: Callable[..., StageCache], name: str, inputs: dict[str, Any]) -> None:
    first = cache().run("trace", {"model": "m", "n": [1, 2]}, Maker())
    second = cache().run(name, inputs, Maker("other"))
    assert first != second
    assert (first / "result").read_text() == "made"
    assert (second / "result").read_text() == "other"


@pytest.mark.parametrize("wrap", [lambda make: make, partial, lambda make: partial(partial(make))])
def test_other_source_code_is_another_stage(
    cache: Callable[..., StageCache], monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Maker], StageMaker]
) -> None:
    asked: list[str] = []
    first = cache().run("trace", {}, wrap(Maker()))

    def key(_: StageCode, module: str) -> dict[str, object]:
        asked.append(module)
        return {"code": "another version"}

    monkeypatch.setattr(StageCode, "key", key)
    make = Maker()
    assert cache().run("trace", {}, wrap(make)) != first
    assert make.calls == 1
    assert asked == [Maker.__module__]


def test_what_a_stage_left_in_cycles_is_gone_before_the_next(cache: Callable[..., StageCache]) -> None:
    left: list[weakref.ref[Recorder]] = []

    def leave(_folder: Path, _reporter: Reporter) -> None:
        one, other = Recorder(), Recorder()
        one.told.append((other,))
        other.told.append((one,))
        left.append(weakref.ref(one))

    gc.disable()
    try:
        cache().run("trace", {}, leave)
        assert left[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failing_stage_leaves_nothing_and_the_finished_ones_stay(
    cache: Callable[..., StageCache], tmp_path: Path, error: type[BaseException]
) -> None:
    def fail(folder: Path, _reporter: Reporter) -> None:
        (folder / "half").write_text("half a resu")
        raise error("in the middle")

    broken = cache()
    broken.run("trace", {}, Maker())
    with pytest.raises(error, match="in the middle"):
        broken.run("observe", {}, fail)
    assert _names(tmp_path / "stages") == ["trace"]
    make = Maker()
    assert (cache().run("observe", {}, make) / "result").is_file()
    assert make.calls == 1


def test_what_a_killed_run_left_is_replaced(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    folder = cache().run("trace", {}, Maker())
    folder.rename(tmp_path / "stages" / f".unfinished-{folder.name}")
    make = Maker("whole")
    assert (cache().run("trace", {}, make) / "result").read_text() == "whole"
    assert _names(tmp_path / "stages") == ["trace"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_resumable_stage_goes_on_with_what_it_wrote_and_never_shows_it_unfinished(
    cache: Callable[..., StageCache], tmp_path: Path, error: type[BaseException]
) -> None:
    def make(folder: Path, _reporter: Reporter) -> None:
        done = len(list(folder.iterdir()))
        (folder / f"part-{done}").write_text("whole")
        if done < 2:
            raise error("in the middle")

    for parts in (1, 2):
        with pytest.raises(error, match="in the middle"):
            cache().run("learn", {"n": 1}, make, resumable=True)
        (unfinished,) = (tmp_path / "stages").iterdir()
        assert unfinished.name.startswith(".unfinished-learn-")
        assert len(list(unfinished.iterdir())) == parts
    folder = cache().run("learn", {"n": 1}, make, resumable=True)
    assert sorted(path.name for path in folder.iterdir()) == ["part-0", "part-1", "part-2"]
    assert list((tmp_path / "stages").iterdir()) == [folder]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For many runs: the source code is not read again."""
    monkeypatch.setattr(StageCode, "key", lambda *_: "this version")


@pytest.mark.usefixtures("quick")
def test_wherever_a_run_is_killed_the_next_one_has_whole_stages(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    folder = tmp_path / "stages"

    def two_files(unfinished: Path, _reporter: Reporter) -> None:
        for name in ("graph", "weights"):
            (unfinished / name).write_text("whole")

    def build() -> None:
        stages = cache()
        for number in (1, 2):
            stages.run("trace", {"n": number}, two_files)
        stages.prune()

    def earlier_plan() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        cache().run("trace", {"n": 1}, two_files)
        cache().run("trace", {"n": 3}, two_files)

    deaths = 0
    for deaths in every_death(earlier_plan, build):  # noqa: B007 (looked at below)
        for stage in folder.glob("trace-*"):
            assert {path.name: path.read_text() for path in stage.iterdir()} == {"graph": "whole", "weights": "whole"}
        build()
        assert len(list(folder.iterdir())) == 2
    assert deaths > 8  # the second stage is made, named, and the third loses its name, its files and its folder


@pytest.mark.usefixtures("quick")
def test_wherever_a_fresh_run_is_killed_no_half_removed_stage_is_taken_for_a_whole_one(
    cache: Callable[..., StageCache], tmp_path: Path
) -> None:
    folder = tmp_path / "stages"

    def earlier_run() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        cache().run("trace", {}, Maker())

    for _ in every_death(earlier_run, lambda: cache(fresh=True)):
        assert (cache().run("trace", {}, Maker()) / "result").read_text() == "made"


def test_stage_that_does_not_fit_on_the_disk_is_told_before_it_begins(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    make = Maker()
    with pytest.raises(NoRoomError, match=r"(?s)too little disk space for stage trace\..*expected: about 1000.0 GB") as caught:
        cache().run("trace", {}, make, room=10**12)
    assert str(tmp_path / "stages" / "trace-") in str(caught.value)
    assert make.calls == 0


def test_stage_that_fills_the_disk_leaves_nothing_and_says_where(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    def fill(folder: Path, _reporter: Reporter) -> None:
        (folder / "graph").write_bytes(bytes(10_000))

    broken = cache()
    broken.run("trace", {}, Maker())
    with pytest.raises(NoRoomError, match=r"found:    .*/stages/observe-\w+: File too large; .* free"), largest_file(5_000):
        broken.run("observe", {}, fill)
    assert _names(tmp_path / "stages") == ["trace"]


def test_resumable_stage_of_other_inputs_begins_anew(cache: Callable[..., StageCache]) -> None:
    def fail(folder: Path, _reporter: Reporter) -> None:
        (folder / "half").write_text("half a resu")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache().run("learn", {"n": 1}, fail, resumable=True)
    assert (cache().run("learn", {"n": 2}, Maker(), resumable=True) / "result").is_file()


def test_unfinished_resumable_stages_of_earlier_plans_are_pruned(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    def fail(folder: Path, _reporter: Reporter) -> None:
        (folder / "half").write_text("half a resu")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache().run("learn", {"n": 1}, fail, resumable=True)
    later = cache()
    kept = later.run("trace", {}, Maker())
    later.prune()
    assert list((tmp_path / "stages").iterdir()) == [kept]


def test_stages_of_earlier_plans_are_pruned_when_the_build_is_done(cache: Callable[..., StageCache], tmp_path: Path) -> None:
    old = cache()
    kept = old.run("trace", {}, Maker())
    gone = old.run("observe", {"samples": 1}, Maker())
    (tmp_path / "stages" / ".unfinished-observe").mkdir()
    new = cache()
    new.run("trace", {}, Maker())
    added = new.run("observe", {"samples": 2}, Maker())
    assert gone.exists()
    new.prune()
    assert sorted((tmp_path / "stages").iterdir()) == sorted([kept, added])


def test_fresh_forgets_everything(cache: Callable[..., StageCache]) -> None:
    make: StageMaker = Maker()
    cache().run("trace", {}, make)
    cache(fresh=True).run("trace", {}, make)
    assert isinstance(make, Maker)
    assert make.calls == 2
