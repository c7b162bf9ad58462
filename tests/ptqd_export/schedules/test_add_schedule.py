"""What a schedule that is added holds, and that the bundle is sound at every moment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

import engines.cli
from calib.correction.correction_fit import Part
from calib.walk.fit import PROBED_SAMPLES
from engines.backends.base import Engine
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.bundle.bundle import Bundle
from engines.chain.schedule import Schedule
from engines.errors import UsageError
from engines.host.machine import machine_name
from engines.networks.chain_choice import ChainChoice
from ptqd_export.graph.stand_in_backend import StandInBackend
from ptqd_export.schedules.add_schedule import AddedSchedule, add_schedule
from ptqd_export.schedules.settings import ScheduleRequest
from ptqd_export.schedules.stored_schedule import store_schedule
from tests.dying import every_death
from tests.ptqd_export.stages.whole_builds import portable

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

ROOT = Path(__file__).parents[3]
FRAMEWORKS = ("torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "scipy", "onnxruntime")


def _add(tiny: TinyBundle, **request: Any) -> AddedSchedule:
    return add_schedule(tiny.folder, "other", ScheduleRequest(**request))


def _default(tiny: TinyBundle) -> Schedule:
    return Bundle.open(tiny.folder).schedule()


def _assert_sound(tiny: TinyBundle) -> Bundle:
    """Every file is listed and has its hash."""
    bundle = Bundle.open(tiny.folder)
    for name in bundle.manifest.files:
        bundle.path(name)
    assert {*bundle.manifest.files, "manifest.json"} == set(portable(tiny.folder))
    return bundle


# From moments


@pytest.mark.usefixtures("no_engines")
def test_the_same_schedule_follows_from_the_moments_bit_for_bit(built_tiny: TinyBundle) -> None:
    added = _add(built_tiny)
    assert added.fit == "moments"
    assert added.schedule == _default(built_tiny)
    assert _assert_sound(built_tiny).schedule("other") == added.schedule


@pytest.mark.usefixtures("no_engines")
def test_another_mode_is_fitted_to_the_stored_moments(built_tiny: TinyBundle) -> None:
    schedule = _add(built_tiny, mode="mmse", policy="fixed", precisions=("w4a8",)).schedule
    assert (schedule.correction.mode, schedule.policy) == ("mmse", "fixed")
    assert [step.precision for step in schedule.steps] == ["w4a8"] * 4
    for step, record in zip(schedule.steps, _records(built_tiny, "w4a8"), strict=True):
        covariance = _guided_covariance(record["moments"], 1.5)
        mixing = np.array([[1.0, 0.0], [1.0, 1.0]])  # e and q of e and d
        (_, cov_eq), (_, var_q) = mixing @ covariance @ mixing.T
        assert step.corrections["w4a8"].gain == pytest.approx((cov_eq / var_q,), rel=1e-9)
        assert step.corrections["fp32"].gain == (1.0,)
        assert step.corrections["fp32"].sigma_corrected == step.sigma


def _records(tiny: TinyBundle, precision: str, folder: str = "") -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads((tiny.folder / "statistics/onnxruntime" / folder / f"{precision}.json").read_text())["steps"]
    return steps


def _guided_covariance(moments: dict[str, Any], w: float) -> Any:
    """[2, 2] of the guided `e` and `d` in the one channel, by the arithmetic of this test."""
    assert moments["variables"] == ["x", "e_cond", "e_uncond", "d_cond", "d_uncond"]
    count, mean, scatter = (np.array(moments[key], dtype=np.float64) for key in ("count", "mean", "scatter"))
    total = count.sum()
    second = (scatter[:, 0] + count[:, None, None] * mean[:, 0, :, None] * mean[:, 0, None, :]).sum(axis=0) / total
    first = (count[:, None] * mean[:, 0]).sum(axis=0) / total
    guide = np.array([[0, w, 1 - w, 0, 0], [0, 0, 0, w, 1 - w]])
    return guide @ (second - np.outer(first, first)) @ guide.T


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_another_guidance_is_what_a_walk_at_that_scale_finds_at_the_first_step(built_tiny: TinyBundle, guidance: float) -> None:
    refitted = _add(built_tiny, guidance=guidance, mode="mmse")
    walked = add_schedule(built_tiny.folder, "walked", ScheduleRequest(guidance=guidance, mode="mmse", fit="walk"))
    assert (refitted.fit, walked.fit) == ("moments", "walk")
    assert refitted.schedule.sampler.guidance == guidance
    ours, theirs = (added.schedule.steps[0].corrections["w4a8"] for added in (refitted, walked))
    assert ours.gain == pytest.approx(theirs.gain, rel=1e-4)
    assert ours.offset == pytest.approx(theirs.offset, rel=1e-3, abs=1e-5)
    assert ours.residual_variance == pytest.approx(theirs.residual_variance, rel=1e-3)
    assert ours.residual_variance != pytest.approx(_default(built_tiny).steps[0].corrections["w4a8"].residual_variance, rel=0.1)


@pytest.mark.usefixtures("no_engines")
def test_parts_and_variance_are_recorded_and_hold(built_tiny: TinyBundle) -> None:
    schedule = _add(built_tiny, parts=("offset",), variance="none").schedule
    assert (schedule.correction.parts, schedule.correction.variance) == (("offset",), "none")
    fitted = [(step, correction) for step in schedule.steps for correction in step.corrections.values()]
    assert all(correction.gain == (1.0,) and correction.sigma_corrected == step.sigma for step, correction in fitted)
    assert any(correction.offset != (0.0,) for _, correction in fitted)
    assert schedule.sampler == _default(built_tiny).sampler


# From a walk


def test_a_walk_of_the_same_chain_finds_the_same(built_tiny: TinyBundle) -> None:
    added = _add(built_tiny, fit="walk")
    assert added.schedule == _default(built_tiny)
    for name in ("w4a8", "w8a8"):
        written = portable(built_tiny.folder)[f"statistics/onnxruntime/other/{name}.json"]
        assert json.loads(written) == json.loads(portable(built_tiny.folder)[f"statistics/onnxruntime/{name}.json"])


def test_another_chain_is_walked_with_the_precisions_that_it_takes(built_tiny: TinyBundle) -> None:
    added = _add(built_tiny, steps=3, eta=0.5, policy="fixed", precisions=("w4a8",), samples=8)
    assert added.fit == "walk"
    assert (added.schedule.sampler.steps, added.schedule.sampler.eta, len(added.schedule.steps)) == (3, 0.5, 3)
    assert added.schedule.precisions == ("fp32", "w4a8")
    files = _assert_sound(built_tiny).manifest.files
    assert [name for name in files if "/other/" in name] == ["statistics/onnxruntime/other/w4a8.json"]
    assert [record["n"] for record in _records(built_tiny, "w4a8", "other")] == [8] * 3
    assert portable(built_tiny.folder).keys() == {*files, "manifest.json"}, "the states of the walk are gone"


def test_a_deterministic_chain_can_be_shifted_and_sampled(built_tiny: TinyBundle, tmp_path: Path) -> None:
    schedule = _add(built_tiny, eta=0.0, variance="shift", policy="fixed", precisions=("w4a8",)).schedule
    assert schedule.correction.variance == "shift"
    left = [step.corrections["w4a8"].unabsorbed_variance for step in schedule.steps]
    shifted = [step.shifted for step in schedule.steps]
    assert [shift is not None for shift in shifted] == [False, *(u > 0 for u in left[:-2]), False]
    assert any(left[:-2])
    arguments = ["sample", built_tiny.folder, "--schedule", "other", "--num", 2, "--seed", 1, "--output", tmp_path / "out"]
    done = CliRunner().invoke(engines.cli.main, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_a_deterministic_chain_gives_its_excess_to_the_predicted_noise(built_tiny: TinyBundle, sampler: str) -> None:
    left = []
    for variance in ("schedule", "drift"):
        request = ScheduleRequest(
            sampler=sampler, eta=0.0, mode="none", variance=variance, policy="fixed", precisions=("w4a8",), samples=32
        )
        schedule = add_schedule(built_tiny.folder, variance, request).schedule
        assert schedule.correction.variance == variance
        left.append(sum(step.corrections["w4a8"].unabsorbed_variance for step in schedule.steps))
    assert 0 <= left[1] < 0.99 * left[0], "the random network of this model predicts little noise"


def test_a_chain_corrected_for_its_accumulated_error_runs_as_it_was_fitted(built_tiny: TinyBundle, tmp_path: Path) -> None:
    parts: tuple[Part, ...] = ("gain", "offset", "chain")
    schedule = _add(built_tiny, parts=parts, policy="fixed", precisions=("w4a8", "w4a8", "w8a8", "w8a8")).schedule
    assert schedule.correction.parts == parts
    arguments = ["sample", built_tiny.folder, "--schedule", "other", "--num", 2, "--seed", 1, "--output", tmp_path / "out"]
    done = CliRunner().invoke(engines.cli.main, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stderr) == (0, "")
    alone = CliRunner().invoke(engines.cli.main, [str(argument) for argument in [*arguments, "--precision", "w4a8"]])
    assert alone.exit_code == 2
    assert "corrected for the quantization noise of its own precisions" in alone.stderr


@pytest.mark.parametrize(
    ("share", "taken"),
    [(1 / 32, {"w4a8": 4}), (1 / 16, {"w8a8": 4}), ((3 / 32 + 1 / 16) / 4, {"w4a8": 3, "w8a8": 1})],
    ids=["the cheapest", "the dearest", "one step of it"],
)
def test_a_budget_is_spent_where_it_counts(built_tiny: TinyBundle, share: float, taken: dict[str, int]) -> None:
    for name, saved in (("w4a8", 32.0), ("w8a8", 16.0)):
        built_tiny.edit_json("manifest.json", partial(_save_bit_operations, name, saved))
    added = _add(built_tiny, policy="budget", budget=share)
    assert (added.schedule.policy, added.fit) == ("budget", "moments")
    assert Counter(step.precision for step in added.schedule.steps) == taken
    walked = add_schedule(built_tiny.folder, "walked", ScheduleRequest(policy="budget", budget=share, fit="walk"))
    assert [step.precision for step in walked.schedule.steps] == [step.precision for step in added.schedule.steps]
    _assert_sound(built_tiny)


def _save_bit_operations(precision: str, saved: float, manifest: dict[str, Any]) -> None:
    manifest["precisions"][precision]["bit_operations_saved_all"] = saved


def test_walk_and_probes_run_on_the_backend_that_measured_the_bundle(built_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    built_tiny.edit_json("manifest.json", lambda manifest: manifest["target"].update(name="tensorrt", high_precision="bf16"))
    opened: list[tuple[str, int, bool]] = []
    standing_in: list[bool] = []
    stand_in, plain = StandInBackend.open, OnnxRuntimeBackend.open

    def open_stand_in(self: StandInBackend, graph: Path, rows: int) -> Engine:
        standing_in.append(True)
        try:
            return stand_in(self, graph, rows)
        finally:
            standing_in.pop()

    def open_plain(self: OnnxRuntimeBackend, graph: Path, rows: int) -> Engine:
        opened.append((graph.stem, rows, bool(standing_in)))
        return plain(self, graph, rows)

    monkeypatch.setattr(StandInBackend, "open", open_stand_in)
    monkeypatch.setattr(OnnxRuntimeBackend, "open", open_plain)
    _add(built_tiny, policy="budget", budget=1.0, fit="walk")
    walked, probed = 2 * 10, 2 * PROBED_SAMPLES
    assert {(name, rows) for name, rows, _ in opened} >= {(name, rows) for name in ("fp32", "w4a8", "w8a8") for rows in (walked, probed)}
    assert all(through_stand_in for *_, through_stand_in in opened)


def test_a_budget_of_time_is_what_this_machine_measured(built_tiny: TinyBundle) -> None:
    request = ScheduleRequest(policy="budget", budget=0.5, cost="time")
    with pytest.raises(UsageError, match="not timed on this machine"):
        add_schedule(built_tiny.folder, "other", request)
    machine = {"processor": "A", "cores": 2, "provider": "CPU", "batch": 8, "guided": True}
    times = built_tiny.folder / "local" / machine_name() / "times.json"
    times.parent.mkdir(parents=True)
    times.write_text(json.dumps({**machine, "milliseconds_a_step": {"fp32": 8.0, "w8a8": 4.5, "w4a8": 4.0}}))
    added = add_schedule(built_tiny.folder, "other", request)
    assert {step.precision for step in added.schedule.steps} == {"w4a8"}


def test_the_chain_is_opened_at_its_own_guidance(built_tiny: TinyBundle) -> None:
    _add(built_tiny, guidance=1.0, policy="fixed", precisions=("w4a8",))
    assert ChainChoice("other").open(Bundle.open(built_tiny.folder), 2).guidance == 1.0


# Files


def test_a_schedule_of_the_name_is_replaced_only_when_forced(built_tiny: TinyBundle) -> None:
    _add(built_tiny, fit="walk")
    before = portable(built_tiny.folder)
    with pytest.raises(UsageError, match="--force"):
        _add(built_tiny, mode="none")
    assert portable(built_tiny.folder) == before
    forced = add_schedule(built_tiny.folder, "other", ScheduleRequest(mode="none"), force=True)
    assert _assert_sound(built_tiny).schedule("other") == forced.schedule
    assert not [name for name in portable(built_tiny.folder) if "/other/" in name], "what the replaced one measured is gone"


@pytest.mark.parametrize("survivor", range(3))
def test_an_interruption_leaves_a_sound_bundle(built_tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch, survivor: int) -> None:
    _add(built_tiny, fit="walk")
    written: list[Path] = []

    def interrupted(path: Path, text: str) -> None:
        if len(written) == survivor:
            raise KeyboardInterrupt
        written.append(path)
        path.write_text(text)

    for module in ("ptqd_export.schedules.stored_schedule", "engines.bundle.manifest"):  # the second writes the manifest
        monkeypatch.setattr(f"{module}.write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_schedule(built_tiny.folder, "other", ScheduleRequest(mode="none"), force=True)
    bundle = Bundle.open(built_tiny.folder)
    for name in bundle.manifest.files:
        bundle.path(name)
    assert ("schedules/other.json" in bundle.manifest.files) == (survivor == 0)
    assert bundle.schedule() == _default(built_tiny)


def test_wherever_a_replacement_is_killed_the_bundle_is_sound_and_the_next_one_is_stored(built_tiny: TinyBundle, tmp_path: Path) -> None:
    _add(built_tiny, fit="walk")
    saved, folder = Path(shutil.copytree(built_tiny.folder, tmp_path / "saved")), built_tiny.folder
    old, new = _added_files(Bundle.open(folder)), {"schedules/other.json": "new"}

    def restore() -> None:
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)

    found = []
    for _ in every_death(restore, lambda: store_schedule(Bundle.open(folder), "other", new)):
        bundle = Bundle.open(folder)
        for name in bundle.manifest.files:
            bundle.path(name)
        found.append(_added_files(bundle))
        store_schedule(bundle, "other", new)
        assert _added_files(Bundle.open(folder)) == set(new)
    kinds: list[set[str]] = [old, set(), set(new)]
    assert [kinds.index(kind) for kind in found] == sorted(kinds.index(kind) for kind in found)
    assert len(old) == 3
    assert all(kind in found for kind in kinds)


def _added_files(bundle: Bundle) -> set[str]:
    return {name for name in bundle.manifest.files if "other" in name}


# The command


@pytest.mark.parametrize(("arguments", "loaded"), [(["--mode", "mmse"], []), (["--steps", "2"], ["onnxruntime"])])
def test_it_runs_without_a_framework(built_tiny: TinyBundle, arguments: list[str], loaded: list[str]) -> None:
    program = (
        "import sys\nfrom ptqd_export.cli import main\nmain(sys.argv[1:], standalone_mode=False)\n"
        f"print([name for name in {FRAMEWORKS!r} if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "schedule", str(built_tiny.folder), "--name", "other", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, f"{loaded}\n")
    how = "refitted from the stored moments" if not loaded else "fitted on a new walk"
    assert done.stdout.startswith(f"schedule other: {how} in ")
    assert f"ptqd-run sample {built_tiny.folder} --schedule other" in done.stdout


# From another schedule


def test_a_walked_schedule_is_refitted_from_its_own_moments(built_tiny: TinyBundle) -> None:
    walked = add_schedule(built_tiny.folder, "walked", ScheduleRequest(eta=0.0, policy="fixed", precisions=("w4a8",), fit="walk")).schedule
    refitted = _add(built_tiny, base="walked", mode="mmse", fit="moments").schedule
    assert refitted.sampler == walked.sampler
    assert [step.precision for step in refitted.steps] == [step.precision for step in walked.steps]
    for step, record in zip(refitted.steps, _records(built_tiny, "w4a8", "walked"), strict=True):
        covariance = _guided_covariance(record["moments"], 1.5)
        mixing = np.array([[1.0, 0.0], [1.0, 1.0]])
        (_, cov_eq), (_, var_q) = mixing @ covariance @ mixing.T
        assert step.corrections["w4a8"].gain == pytest.approx((cov_eq / var_q,), rel=1e-9)


def test_moments_of_a_schedule_that_did_not_walk_a_precision_do_not_do(built_tiny: TinyBundle) -> None:
    add_schedule(built_tiny.folder, "walked", ScheduleRequest(eta=0.0, policy="fixed", precisions=("w4a8",), fit="walk"))
    with pytest.raises(UsageError, match="do not suffice"):
        _add(built_tiny, base="walked", precisions=("w8a8",), policy="fixed", fit="moments")


def test_a_refitted_schedule_has_no_moments_to_start_from(built_tiny: TinyBundle) -> None:
    add_schedule(built_tiny.folder, "refitted", ScheduleRequest(mode="mmse"))
    with pytest.raises(UsageError, match="no statistics of this schedule"):
        _add(built_tiny, base="refitted", mode="none")
