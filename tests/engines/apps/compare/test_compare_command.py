"""`ptqd-run compare`: figures against numpy and a plain ONNX Runtime session, exit codes, files that `polygraphy` loads."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from engines.apps.compare import compare_command as command
from engines.apps.compare.compare_command import CompareRequest, compare_bundle
from engines.backends.onnxruntime.onnxruntime_backend import OnnxRuntimeBackend
from engines.cli import main
from tests.narrow_terminal import WIDTHS, check_whole, narrow

if TYPE_CHECKING:
    from tests.conftest import TinyBundle

load_json = pytest.importorskip("polygraphy.json", reason="Polygraphy is not installed").load_json

Array = NDArray[Any]
GUIDANCE = 1.5
FIGURES = ("snr_db", "psnr_db", "cosine_similarity", "max_absolute_error")


def compare(bundle: TinyBundle, *options: object) -> Result:
    return CliRunner().invoke(main, ["compare", str(bundle.folder), *map(str, options)])


def figures(bundle: TinyBundle, tmp_path: Path, *options: object) -> dict[str, Any]:
    result = compare(bundle, "--json", tmp_path / "figures.json", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    content: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
    return content


def by_definition(e: Array, q: Array) -> list[float]:
    """`FIGURES` in float64."""
    e, q = e.astype(np.float64), q.astype(np.float64)
    noise = np.mean((q - e) ** 2)
    cosine = np.sum(e * q) / np.sqrt(np.sum(e**2) * np.sum(q**2))
    return [10 * np.log10(np.mean(e**2) / noise), 20 * np.log10(e.max()) - 10 * np.log10(noise), cosine, np.abs(q - e).max()]


def guided(raw: Array) -> Array:
    conditional, unconditional = np.split(raw.astype(np.float64), 2)
    mixed: Array = unconditional + GUIDANCE * (conditional - unconditional)
    return mixed


def rerun(bundle: TinyBundle, precision: str, inputs: list[Any]) -> list[Array]:
    """Outputs of a plain session on the saved inputs."""
    session = onnxruntime.InferenceSession(bundle.folder / f"graphs/onnxruntime/{precision}.onnx", providers=["CPUExecutionProvider"])
    return [session.run(None, dict(feeds))[0] for feeds in inputs]


def iterations(folder: Path) -> list[Any]:
    return [load_json(str(path)) for path in sorted(folder.iterdir())]


def test_figures_are_those_of_the_saved_inputs(tiny: TinyBundle, tmp_path: Path) -> None:
    """5 samples in batches of 3: two saved iterations a step, the first batch's steps first."""
    content = figures(tiny, tmp_path, "--num", 5, "--batch-size", 3, "--save", tmp_path / "saved")
    schedule = json.loads((tiny.folder / "schedules/default.json").read_text())
    inputs = iterations(tmp_path / "saved/inputs")
    assert len(inputs) == 8
    e = [guided(out) for out in rerun(tiny, "fp32", inputs)]
    assert sorted(content["precisions"]) == ["w4a8", "w8a8"]
    for precision, found in content["precisions"].items():
        q = [guided(out) for out in rerun(tiny, precision, inputs)]
        for i, step in enumerate(found["steps"]):
            both, other = np.concatenate([e[i], e[4 + i]]), np.concatenate([q[i], q[4 + i]])
            assert both.shape == (5, 1, 8, 8)
            assert (step["step"], step["timestep"]) == (i, schedule["steps"][i]["timestep"])
            assert set(inputs[i]["timestep"]) == {step["timestep"]}
            assert step["chosen"] == (schedule["steps"][i]["precision"] == precision)
            assert [step[name] for name in FIGURES] == pytest.approx(by_definition(both, other), rel=1e-6, abs=1e-6)
            correction = schedule["steps"][i]["corrections"][precision]
            x = np.concatenate([np.split(inputs[visit]["sample"], 2)[0] for visit in (i, 4 + i)])
            corrected = correction["gain"][0] * other + correction["offset"][0] + correction["state_gain"][0] * x
            assert step["corrected_snr_db"] == pytest.approx(by_definition(both, corrected)[0], rel=1e-6)
        snr = [step["snr_db"] for step in found["steps"]]
        assert found["mean_snr_db"] == pytest.approx(np.mean(snr), rel=1e-9)
        assert found["worst_step"] == int(np.argmin(snr))


def test_saved_outputs_are_what_each_engine_gave(tiny: TinyBundle, tmp_path: Path) -> None:
    figures(tiny, tmp_path, "--num", 2, "--steps", 2, "--save", tmp_path / "saved")
    inputs = iterations(tmp_path / "saved/inputs")
    for network, precision in {"reference": "fp32", "w4a8": "w4a8", "w8a8": "w8a8"}.items():
        for result, expected in zip(iterations(tmp_path / "saved/outputs" / network), rerun(tiny, precision, inputs), strict=True):
            ((name, (outputs,)),) = list(result)
            assert name == network
            np.testing.assert_allclose(outputs["out"], expected, atol=1e-5)


def test_polygraphy_loads_what_was_saved(tiny: TinyBundle, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    figures(tiny, tmp_path, "--num", 2, "--steps", 2, "--save", saved)
    graph = tiny.folder / "graphs/onnxruntime/w8a8.onnx"
    program = "import sys; from polygraphy.tools import main; sys.exit(main())"
    loads = ["--load-inputs", saved / "inputs", "--load-outputs", saved / "outputs/w8a8", "--compare", "snr", "--snr-threshold", 80]
    command = [sys.executable, "-c", program, "run", graph, "--onnxrt", *loads]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed: 2/2 iterations" in done.stdout


def test_threshold_that_holds_exits_0_and_one_above_exits_1(tiny: TinyBundle, tmp_path: Path) -> None:
    content = figures(tiny, tmp_path, "--num", 4)
    worst = min(step["snr_db"] for found in content["precisions"].values() for step in found["steps"])
    assert compare(tiny, "--num", 4, "--min-snr-db", worst - 0.01).exit_code == 0
    result = compare(tiny, "--num", 4, "--min-snr-db", worst + 0.01, "--json", tmp_path / "again.json")
    assert result.exit_code == 1
    step = content["precisions"]["w4a8"]["worst_step"]
    assert f"found:    w4a8 at step {step} (timestep " in result.stderr
    assert f"): {worst:.2f} dB\n" in result.stderr
    assert json.loads((tmp_path / "again.json").read_text()) == content  # written all the same
    assert compare(tiny, "--num", 4, "--precisions", "w8a8", "--min-snr-db", worst + 0.01).exit_code == 0


def test_tables_show_precisions_and_steps(tiny: TinyBundle) -> None:
    out = compare(tiny, "--num", 2, "--steps", 2).stdout
    assert "against fp32 on ONNX Runtime: 2 samples, schedule default" in out
    for word in ("w4a8", "w8a8", "worst SNR", "mean corrected SNR", "1 of 2", "guidance 1.5, seed 0"):
        assert word in out


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_whole_in_a_narrow_terminal(tiny: TinyBundle, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, width)
    out = compare(tiny, "--num", 2, "--steps", 2).stdout
    check_whole(
        out, width, ("precision", "SNR", "at step", "cosine", "PSNR", "largest", "error", "corrected", "chosen", "step", "timestep")
    )


def test_bundle_for_another_runtime_is_told(tiny: TinyBundle) -> None:
    result = compare(tiny, "--runtime", "tensorrt")
    assert result.exit_code == 2
    assert "The bundle's graphs are not for TensorRT." in result.stderr


def test_full_precision_of_another_backend_is_compared_too(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "open_backend", lambda *_: OnnxRuntimeBackend(mode="exact"))
    result = compare_bundle(CompareRequest(tiny.folder, num=2, runtime="onnxruntime"))
    assert list(result.precisions) == ["fp32", "w4a8", "w8a8"]
    assert all(step.snr_db is None or step.snr_db > 100 for step in result.precisions["fp32"].steps)


def test_engines_of_openvino_are_compared_with_full_precision_on_onnxruntime(own_tiny: TinyBundle) -> None:
    pytest.importorskip("openvino")
    result = compare_bundle(CompareRequest(own_tiny.folder, num=2, runtime="openvino"))
    assert result.reference == "fp32 on ONNX Runtime"
    assert result.precisions["fp32"].engine == "fp32 on OpenVINO"
    assert all(step.snr_db is None or step.snr_db > 100 for step in result.precisions["fp32"].steps)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime runs on a GPU")
def test_missing_runtime_exits_3(tiny: TinyBundle) -> None:
    assert compare(tiny, "--runtime", "onnxruntime-cuda").exit_code == 3


def test_unconditional_models_are_compared_too(tiny_unconditional: TinyBundle, tmp_path: Path) -> None:
    content = figures(tiny_unconditional, tmp_path, "--num", 2, "--precisions", "w8a8")
    assert content["guidance"] == 1
    assert 30 < content["precisions"]["w8a8"]["mean_snr_db"] < 60


def test_batch_size_does_not_change_figures(tiny: TinyBundle) -> None:
    one, all_at_once = (compare_bundle(CompareRequest(tiny.folder, num=5, batch_size=size)) for size in (1, 5))
    for name, found in one.precisions.items():
        for step, other in zip(found.steps, all_at_once.precisions[name].steps, strict=True):
            assert step.snr_db == pytest.approx(other.snr_db, abs=1e-3)


def test_memory_does_not_grow_with_samples(tiny: TinyBundle) -> None:
    def peak(num: int) -> int:
        tracemalloc.start()
        compare_bundle(CompareRequest(tiny.folder, num=num, batch_size=8, steps=2))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(8)  # what is imported once
    state = 8 * 8 * 4
    assert peak(256) - peak(16) < 240 * state / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precisions", "w3a8"], "There is no such engine to compare.\n  found:    w3a8\n  expected: w4a8 or w8a8"),
        (["--precisions", "fp32"], "There is no such engine to compare."),
        (["--steps", 5], "The schedule has fewer steps.\n  found:    --steps 5"),
        (["--schedule", "other"], "The bundle has no such schedule."),
        (["--seed", -1], "The seed is out of range."),
    ],
)
def test_wrong_requests_are_errors_of_usage(tiny: TinyBundle, tmp_path: Path, options: list[object], message: str) -> None:
    result = compare(tiny, *options, "--save", tmp_path / "saved")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_folder_with_files_is_not_saved_to(tiny: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    result = compare(tiny, "--save", tmp_path)
    assert result.exit_code == 2
    assert "The folder to save to is not empty." in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_missing_polygraphy_names_the_extra(tiny: TinyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engines.apps.compare.polygraphy_run", raising=False)
    monkeypatch.setitem(sys.modules, "polygraphy.backend.base", None)
    result = compare(tiny)
    assert result.exit_code == 3
    assert "Polygraphy is not installed." in result.stderr
    assert "pip install 'ptqd-export[compare]'" in result.stderr
