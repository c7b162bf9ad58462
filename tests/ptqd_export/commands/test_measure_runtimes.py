"""What `--runtime auto` takes, on runtimes that are ONNX Runtime, slowed down or made wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from engines.apps.sample.samples_record import SamplesRecord
from engines.arrays import Float32
from engines.backends import choice
from engines.backends.base import Backend, Engine
from engines.backends.choice import ON_CPU, PACKAGES, chosen_runtime, on_onnxruntime, open_backend
from engines.backends.measured_runtimes import MeasuredRuntime, MeasuredRuntimes, runtimes_file
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.cli import main as run
from engines.errors import BundleError, MissingBackendError, PtqdError
from engines.host.files import sha256
from engines.terminal.installed_packages import installed_versions
from ptqd_export.commands import measure_runtimes as module
from ptqd_export.commands.measure_runtimes import measure_runtimes, print_runtimes

if TYPE_CHECKING:
    from tests.ptqd_export.conftest import Built


class Changed(Engine):
    """An engine that waits, and whose output is scaled."""

    def __init__(self, engine: Engine, seconds: float, factor: float) -> None:
        super().__init__(engine.label, engine.inputs, engine.output)
        self._engine, self._seconds, self._factor = engine, seconds, factor

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> list[Float32]:
        time.sleep(self._seconds)
        return [self._factor * self._engine.run(feeds)]


@dataclass(frozen=True)
class ChangedBackend:
    backend: Backend
    seconds: float = 0.0
    factor: float = 1.0

    def open(self, graph: Path, rows: int) -> Engine:
        return Changed(self.backend.open(graph, rows), self.seconds, self.factor if graph.stem.startswith("w8a8") else 1.0)


@pytest.fixture
def folder(small_build: Built, tmp_path: Path) -> Path:
    shutil.copytree(small_build.folder, tmp_path / "bundle", ignore=shutil.ignore_patterns("stages"))
    return tmp_path / "bundle"


def measured(folder: Path, monkeypatch: pytest.MonkeyPatch, **backends: Any) -> MeasuredRuntimes:
    """Measure with other backends; ONNX Runtime is slowed down by 20 ms unless it is among them."""
    own = on_onnxruntime(Bundle.open(folder), threads=1)
    backends = {"onnxruntime": ChangedBackend(own, 0.02), "openvino": ChangedBackend(own), **backends}

    def opened(_bundle: Bundle, name: str) -> Backend:
        found = backends[name]
        if isinstance(found, PtqdError):
            raise found
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "open_backend", opened)
    monkeypatch.setattr(module, "ROUNDS", 2)
    found = measure_runtimes(folder)
    assert found is not None
    return found


def test_the_fastest_that_is_right_is_taken_and_the_record_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = measured(folder, monkeypatch)
    assert list(found.runtimes) == ["onnxruntime", "openvino"]
    assert all(one.departure_db is not None and one.departure_db < 1 for one in found.runtimes.values())
    print_runtimes(found)
    assert "the best" in capsys.readouterr().out
    name, reason = chosen_runtime(Bundle.open(folder), "auto")
    assert (name, reason) == ("openvino", "the fastest that is right of onnxruntime, openvino, as measured on this machine")
    own = on_onnxruntime(Bundle.open(folder), threads=1)
    monkeypatch.setattr(choice, "OpenVinoBackend", lambda *_: own)
    done = CliRunner().invoke(run, ["sample", str(folder), "--num", "2", "--seed", "1", "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    record = SamplesRecord.model_validate_json((tmp_path / "out" / "samples.json").read_text())
    assert (record.runtime, record.runtime_reason) == (name, reason)


def test_a_runtime_with_other_noise_is_refused_however_fast(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = on_onnxruntime(Bundle.open(folder), threads=1)
    found = measured(folder, monkeypatch, openvino=ChangedBackend(own, factor=1.3)).runtimes["openvino"]
    assert found.refused is not None
    assert "The engine of w8a8 is not the one" in found.refused
    assert found.milliseconds is None
    assert chosen_runtime(Bundle.open(folder), "auto")[0] == "onnxruntime"


def test_a_runtime_that_refuses_the_graphs_is_listed_with_its_reason_and_a_missing_one_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = MissingBackendError("ONNX Runtime is not installed.")
    found = measured(folder, monkeypatch, onnxruntime=missing, openvino=PtqdError("It saturates.", found="no VNNI"))
    assert list(found.runtimes) == ["openvino"]
    assert found.runtimes["openvino"].refused == "It saturates. found: no VNNI"
    assert chosen_runtime(Bundle.open(folder), "auto")[0] == "onnxruntime"


def recorded(bundle: Bundle) -> MeasuredRuntimes:
    """Write what a measurement would have found: OpenVINO is the faster."""
    times = {"onnxruntime": 3.0, "openvino": 2.0}
    runtimes = {
        name: MeasuredRuntime(
            versions=installed_versions(*PACKAGES[name]),
            milliseconds_a_step={"w8a8": times[name]},
            milliseconds=times[name],
            departure_db=0.1,
        )
        for name in ON_CPU
    }
    found = MeasuredRuntimes(bundle=sha256(bundle.folder / MANIFEST), batch=2, runtimes=runtimes)
    found.write(bundle)
    return found


def test_what_was_measured_of_another_bundle_or_version_does_not_count(folder: Path) -> None:
    bundle = Bundle.open(folder)
    found = recorded(bundle)
    assert chosen_runtime(bundle, "auto")[0] == "openvino"
    found.model_copy(update={"bundle": "0" * 64}).write(bundle)
    assert chosen_runtime(bundle, "auto") == ("onnxruntime", "the bundle's target")
    older = {name: one.model_copy(update={"versions": {name: "0.1"}}) for name, one in found.runtimes.items()}
    found.model_copy(update={"runtimes": older}).write(bundle)
    name, reason = chosen_runtime(bundle, "auto")
    assert name == "onnxruntime"
    assert "still installed" in reason


def test_a_damaged_file_is_an_error(folder: Path) -> None:
    recorded(Bundle.open(folder))
    path = runtimes_file(folder)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"batch": "many"}))
    with pytest.raises(BundleError, match="The measured runtimes are damaged"):
        open_backend(Bundle.open(folder), "auto")
    assert chosen_runtime(Bundle.open(folder), "target") == ("onnxruntime", "the bundle's target")


def test_only_bundles_for_a_cpu_are_measured(class_trt_build: Built) -> None:
    assert measure_runtimes(class_trt_build.folder) is None
    assert chosen_runtime(Bundle.open(class_trt_build.folder), "auto")[0] == "tensorrt-rtx"
