"""Requests that `ptqd-run` refuses: damaged bundles, wrong options, outputs that cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.ptqd_run import names, run, sample

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

GRAPH = "graphs/onnxruntime/w4a8.onnx"


def _edit_graph(bundle: TinyBundle) -> None:
    bundle.edit(GRAPH, lambda content: content[:-1] + b"?")


def _truncate_graph(bundle: TinyBundle) -> None:
    bundle.edit(GRAPH, lambda content: content[:-60])
    bundle.rehash(GRAPH)


def _unknown_operator(bundle: TinyBundle) -> None:
    bundle.edit(GRAPH, lambda content: content.replace(b"Tanh", b"Tank"))
    bundle.rehash(GRAPH)


def _newer_manifest(bundle: TinyBundle) -> None:
    bundle.edit_json("manifest.json", lambda manifest: manifest.update(schema_version=7))


def _newer_schedule(bundle: TinyBundle) -> None:
    bundle.edit_json("schedules/default.json", lambda schedule: schedule.update(schema_version=99))
    bundle.rehash("schedules/default.json")


def _schedule_without_corrections(bundle: TinyBundle) -> None:
    bundle.edit_json("schedules/default.json", lambda schedule: schedule["steps"][2]["corrections"].clear())
    bundle.rehash("schedules/default.json")


def _listed(name: str) -> Callable[[TinyBundle], None]:
    def change(bundle: TinyBundle) -> None:
        bundle.edit_json("manifest.json", lambda manifest: manifest["files"].update({name: manifest["files"][GRAPH]}))

    return change


def _graph_elsewhere(bundle: TinyBundle) -> None:
    bundle.edit_json("manifest.json", lambda manifest: manifest["precisions"]["w4a8"].update(graph="../w4a8.onnx"))


def _no_manifest(bundle: TinyBundle) -> None:
    (bundle.folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "exit_code", "message"),
    [
        (_edit_graph, 1, "A file of the bundle was changed or damaged."),
        (_truncate_graph, 1, "A graph of the bundle cannot be read."),
        (_unknown_operator, 1, "ONNX Runtime refuses the graph."),
        (_newer_manifest, 1, "This ptqd-run does not support the bundle's schema version."),
        (_newer_schedule, 1, "This ptqd-run does not support the bundle's schema version."),
        (_schedule_without_corrections, 1, "A file of the bundle has invalid content."),
        (_listed("../outside"), 1, "A file of the bundle has invalid content."),
        (_listed("/etc/hostname"), 1, "A file of the bundle has invalid content."),
        (_graph_elsewhere, 1, "The manifest does not list a required file."),
        (_no_manifest, 2, "This is not a bundle."),
    ],
)
@pytest.mark.parametrize("command", ["sample", "bench"])
def test_damaged_bundle_is_one_message_and_leaves_nothing(
    own_tiny: TinyBundle, tmp_path: Path, damage: Callable[[TinyBundle], None], exit_code: int, message: str, command: str
) -> None:
    damage(own_tiny)
    output = tmp_path / "out"
    options = ["--num", 2, "--seed", 1, "--output", output] if command == "sample" else ["--rounds", 1, "--json", output]
    result = run(command, own_tiny.folder, *options)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}\n  found:    ")
    assert result.stderr.count("error:") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--guidance", 2],
            "The corrections were fitted at another guidance scale.\n  found:    --guidance 2\n  expected: 1.5, as in schedule default\n",
        ),
        (["--classes", "0,3"], "A class is out of range.\n  found:    3\n  expected: 0 to 2\n"),
        (["--classes", "-1"], "A class is out of range.\n  found:    -1\n  expected: 0 to 2\n"),
        (["--precision", "w2a2"], "The schedule has no such precision.\n  found:    w2a2\n  expected: auto or fp32 or w4a8 or w8a8\n"),
        (["--schedule", "fast"], "The bundle has no such schedule.\n  found:    fast\n  expected: default\n"),
        (["--seed", "-1"], "The seed is out of range.\n"),
        (["--first", 2**63 - 1], f"A sample number is out of range.\n  found:    {2**63 + 1}\n"),
    ],
)
def test_request_that_does_not_fit_is_told_before_any_engine_starts(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], message: str
) -> None:
    monkeypatch.setattr(
        "engines.backends.onnxruntime.onnxruntime_backend.OnnxRuntimeEngine", lambda *_, **__: pytest.fail("an engine was started")
    )
    result = sample(tiny, tmp_path / "out", *options, num=3)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("error:") == 1
    assert not (tmp_path / "out").exists()


def test_other_guidance_is_sampled_only_where_accepted(tiny: TinyBundle, tmp_path: Path) -> None:
    refused = sample(tiny, tmp_path / "out", "--guidance", 2)
    assert "`ptqd-export schedule --guidance`" in refused.stderr
    assert "--accept-guidance" in refused.stderr
    assert sample(tiny, tmp_path / "out", "--guidance", 1.5).exit_code == 0
    assert sample(tiny, tmp_path / "other", "--guidance", 2, "--accept-guidance").exit_code == 0


def test_classes_and_guidance_of_an_unconditional_model_are_errors(tiny_unconditional: TinyBundle, tmp_path: Path) -> None:
    for options, message in (
        (["--classes", "all"], "error: The model is unconditional.\n"),
        (["--guidance", "2", "--accept-guidance"], "error: The model cannot be guided.\n"),
    ):
        result = sample(tiny_unconditional, tmp_path / "out", *options)
        assert result.exit_code == 2
        assert result.stderr.startswith(message)
        assert not (tmp_path / "out").exists()


def test_latents_as_pictures_are_an_error_that_names_npz(tiny_latent: TinyBundle, tmp_path: Path) -> None:
    result = sample(tiny_latent, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: The samples of this model are not pictures.\n  found:    samples of shape [4, 8, 8]\n")
    assert "use --format npz" in result.stderr
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written_is_an_error_of_usage(tiny: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for result in (
        sample(tiny, tmp_path / "file" / "out"),
        run("bench", tiny.folder, "--rounds", 1, "--json", tmp_path / "file" / "bench.json"),
    ):
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: The output folder cannot be written.\n")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_missing_bundle_is_an_error_of_usage(tmp_path: Path) -> None:
    result = run("sample", tmp_path / "none", "--num", 1, "--seed", 1, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: This is not a bundle.\n  found:    no {tmp_path / 'none' / 'manifest.json'}\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--classes", "1,x"], "'1,x' is neither 'all' nor a list of class numbers such as 3,7,7"),
        (["--classes", ""], "neither 'all' nor a list of class numbers"),
        (["--num", 0], "x>=1"),
        (["--batch-size", 0], "x>=1"),
        (["--first", -1], "x>=0"),
        (["--format", "jpg"], "'png', 'npz'"),
        (["--correction", "maybe"], "'on', 'off'"),
        (["--guidance", -1], "x>=0"),
        (["--sed", 1], "No such option"),
    ],
)
def test_wrong_command_line_exits_2_and_writes_nothing(tiny: TinyBundle, tmp_path: Path, options: list[object], complaint: str) -> None:
    result = sample(tiny, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--num", "--seed", "--output"])
def test_what_decides_the_samples_must_be_given(tiny: TinyBundle, tmp_path: Path, option: str) -> None:
    given = {"--num": "1", "--seed": "1", "--output": str(tmp_path / "out")}
    del given[option]
    result = run("sample", tiny.folder, *[word for pair in given.items() for word in pair])
    assert result.exit_code == 2
    assert f"Missing option '{option}'" in result.stderr


def test_bench_of_more_steps_than_there_are_is_an_error_of_usage(tiny: TinyBundle) -> None:
    result = run("bench", tiny.folder, "--steps", 5)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: The schedule has fewer steps.\n  found:    --steps 5\n  expected: 1 to 4\n"
