"""Named attacks on a bundle, as its user meets them: one message, an exit code, no samples."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from engines.bundle.contract import sealed
from engines.bundle.manifest import MANIFEST
from engines.cli import main
from tests.hostile.conftest import Subject
from tests.hostile.mutations import as_text

GRAPH = "graphs/onnxruntime/w4a8.onnx"
SCHEDULE = "schedules/default.json"
SECRET = "secret"


def sampled(subject: Subject, *options: object) -> str:
    """The one message of a sampling that is refused."""
    result = CliRunner().invoke(main, [str(argument) for argument in (*subject.command(prompts=True), *options)])
    assert result.exit_code in (1, 2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "bug" not in result.stderr
    assert not (subject.output / "samples.npz").exists()
    return result.stderr


def edited(subject: Subject, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file, and make all hashes right."""
    content = json.loads(subject.files[name])
    change(content)
    subject.put(name, as_text(content).encode())


def first(schedule: Any) -> Any:
    return schedule["steps"][0]


# Out of the bundle


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "graphs/../../secret", "graphs\\..\\secret"])
def test_path_in_the_manifest_that_leaves_the_bundle(own_bundle: Subject, name: str) -> None:
    edited(own_bundle, MANIFEST, lambda manifest: manifest["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    assert f"{name!r} is not a plain relative path inside the bundle" in sampled(own_bundle)


@pytest.mark.parametrize("kind", ["file", "folder", "circle"])
def test_link_out_of_the_bundle(own_bundle: Subject, tmp_path: Path, kind: str) -> None:
    path = own_bundle.folder / GRAPH
    linked = path.parent if kind == "folder" else path
    outside = tmp_path / SECRET
    shutil.move(linked, outside)
    linked.symlink_to(linked if kind == "circle" else outside)
    message = sampled(own_bundle)
    assert ("A file of the bundle is missing." if kind == "circle" else "lies outside its folder") in message


@pytest.mark.parametrize("location", ["../../../secret", "{secret}", "link", "w8a8.onnx.data", "w8a8-00001-of-00002.onnx.data"])
def test_graph_that_reads_a_file_of_others(own_bundle: Subject, tmp_path: Path, location: str) -> None:
    secret = tmp_path / SECRET
    secret.write_bytes(own_bundle.files[f"{GRAPH}.data"])
    (own_bundle.folder / GRAPH).with_name("link").symlink_to(secret)
    model = onnx.load(own_bundle.folder / GRAPH, load_external_data=False)
    (entry,) = (entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location")
    entry.value = location.format(secret=secret)
    own_bundle.put(GRAPH, model.SerializeToString())
    message = sampled(own_bundle)
    assert "A graph of the bundle reads a file that is not its own." in message
    assert f"reads {entry.value!r}" in message


def test_weights_hidden_in_a_graph_within_a_graph(own_bundle: Subject) -> None:
    tensor = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=tensor)], "inner", [], [])
    model = onnx.load(own_bundle.folder / GRAPH, load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    own_bundle.put(GRAPH, model.SerializeToString())
    assert "reads '/etc/passwd'" in sampled(own_bundle)


def test_weights_that_the_manifest_does_not_list(own_bundle: Subject) -> None:
    edited(own_bundle, MANIFEST, lambda manifest: manifest["files"].pop(f"{GRAPH}.data"))
    assert "w4a8.onnx.data, which the manifest must list" in sampled(own_bundle)


# Things that are no files


@pytest.mark.parametrize("name", [MANIFEST, SCHEDULE, GRAPH, "rows.npz", "tokenizer.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir], ids=["pipe", "device", "folder"])
def test_pipe_device_or_folder_in_the_place_of_a_file(own_bundle: Subject, name: str, make: Callable[[Path], object]) -> None:
    path = own_bundle.folder / name
    path.unlink()
    make(path)
    options = () if name != "rows.npz" else ("--classes", "0")
    message = sampled(own_bundle, *options) if name != "rows.npz" else refused_rows(own_bundle)
    assert "regular file" in message or "Is a directory" in message or "lies outside" in message


def refused_rows(subject: Subject) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in subject.command(prompts=False)])
    assert result.exit_code == 1
    return result.stderr


# Absurd contracts


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda s: first(s).update(x_coeff="@NaN"), "default.json contains NaN, infinity or a number out of range.\n  found:    NaN"),
        (lambda s: first(s).update(x_coeff="@1e999"), "default.json contains NaN, infinity or a number out of range.\n  found:    1e999"),
        (lambda s: first(s).update(x_coeff=1e300), "steps.0.x_coeff: Input should be less than or equal to 1000000000000"),
        (lambda s: first(s).update(timestep="@digits"), "default.json contains NaN, infinity or a number out of range."),
        (lambda s: first(s).update(sigma=-1.0), "steps.0.sigma: Input should be greater than or equal to 0"),
        (lambda s: first(s)["corrections"]["w4a8"].update(gain=[]), "gain, offset and state_gain have 0 channels"),
        (lambda s: first(s)["corrections"]["w4a8"].update(gain=[1.0] * 3, offset=[0.0] * 3, state_gain=[0.0] * 3), "for 1 and 3 channels"),
        (lambda s: s["sampler"].update(steps=10**9), "sampler.steps: Input should be less than or equal to 10000"),
        (lambda s: s["steps"].extend(s["steps"][:1] * 10_000), "steps: Tuple should have at most 10000 items"),
        (lambda s: s.update(schema_version=99), "This ptqd-run does not support the bundle's schema version."),
        (lambda s: s.update({"@twice": 1}), 'default.json contains a key twice.\n  found:    "schema_version"'),
        (lambda s: s.update(policy="\x1b[2J"), "policy: String should match pattern"),
        (lambda s: s.update({"\x1b[2J\x07": 1}), "\\x1b[2J\\x07: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_schedule_with_right_hashes_that_is_absurd(own_bundle: Subject, change: Callable[[Any], object], complaint: str) -> None:
    edited(own_bundle, SCHEDULE, change)
    assert complaint in sampled(own_bundle)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m["model"].update(sample_shape=[3, 10**6, 10**6]), "[3, 1000000, 1000000] has more than"),
        (lambda m: m["model"].update(sample_shape=[1, 8, 0]), "model.sample_shape.2: Input should be greater than 0"),
        (lambda m: m["model"].update(sample_shape=[1, 8, 16]), "is not the network that the manifest describes"),
        (lambda m: m["model"]["decoder"].update(image_shape=[1, 10**6, 10**6]), "model.decoder.image_shape: Value error"),
        (lambda m: m["model"]["decoder"].update(batch=10**12), "model.decoder.batch: Input should be less than or equal to"),
        (lambda m: m["model"]["conditioning"].update(rows=10**12), "model.conditioning.rows: Input should be less than or equal to"),
        (lambda m: m["model"]["text"]["encoders"][0].update(tokens=5), "A tokenizer of the bundle is not the one"),
        (lambda m: m["files"][GRAPH].update(bytes=2**60), f"files.{GRAPH}.bytes: Input should be less than or equal to"),
    ],
)  # fmt: skip
def test_manifest_with_a_right_digest_that_is_absurd(own_bundle: Subject, change: Callable[[Any], object], complaint: str) -> None:
    edited(own_bundle, MANIFEST, change)
    assert complaint in sampled(own_bundle)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "is nested too deeply"),
        (b'{"schema_version": 1, "x": "' + b"x" * 2**26 + b'"}', "the file has more than 67108864 bytes"),
        (b'{"schema_version": "\xff"}', "is not text"),
        (b'{"schema_version": "\\ud800"}', "is not text"),
        (b"[]", "is not a JSON object"),
        (b"", "is not JSON"),
    ],
    ids=["nesting", "nested objects", "one long string", "no UTF-8", "half a letter", "no object", "nothing"],
)
def test_manifest_that_is_a_bomb_or_no_json(own_bundle: Subject, content: bytes, complaint: str) -> None:
    (own_bundle.folder / MANIFEST).write_bytes(content)
    assert complaint in sampled(own_bundle)


def test_embeddings_with_pickled_objects_run_nothing(own_bundle: Subject, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "rows.npz", hidden=np.array([Attack()], dtype=object))
    own_bundle.put("rows.npz", (tmp_path / "rows.npz").read_bytes())
    result = CliRunner().invoke(main, [str(argument) for argument in own_bundle.command(prompts=False)])
    assert result.exit_code == 2
    assert "an array of Python objects" in result.stderr
    assert not (tmp_path / "ran").exists()


def test_prompts_from_a_pipe_are_refused_instead_of_waited_for(own_bundle: Subject, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts.txt")
    command = [*own_bundle.command(prompts=False), "--prompt-file", tmp_path / "prompts.txt"]
    result = CliRunner().invoke(main, [str(argument) for argument in command])
    assert (result.exit_code, "regular file" in result.stderr) == (2, True)


def test_digest_alone_does_not_make_a_manifest(own_bundle: Subject) -> None:
    (own_bundle.folder / MANIFEST).write_text(json.dumps(sealed({"schema_version": 1})))
    assert "model: Field required" in sampled(own_bundle)
