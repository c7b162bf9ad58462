"""`ptqd-export report`, and where a build puts the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from engines.host.machine import machine_name
from ptqd_export.cli import main
from ptqd_export.report.write_report import LOCAL_REPORT, REPORT, write_report

if TYPE_CHECKING:
    from tests.conftest import TinyBundle
    from tests.ptqd_export.report.conftest import Reported


@pytest.fixture
def bundle(own_reported: Reported) -> Path:
    """With times of this machine."""
    times = own_reported.folder / "local" / machine_name() / "times.json"
    times.parent.mkdir(parents=True)
    measured = {"fp32": 4.0, "w4a8": 2.0, "w8a8": 2.5}
    times.write_text(
        json.dumps({"processor": "A", "cores": 2, "provider": "CPU", "batch": 8, "guided": True, "milliseconds_a_step": measured})
    )
    return own_reported.folder


def test_the_command_writes_beside_the_times_and_leaves_the_portable_report(bundle: Path) -> None:
    before = (bundle / REPORT).read_bytes()
    done = CliRunner().invoke(main, ["report", str(bundle)])
    written = bundle / "local" / machine_name() / LOCAL_REPORT
    assert (done.exit_code, done.output) == (0, f"wrote {written}\n")
    assert "Measured time per step" in written.read_text()
    assert (bundle / REPORT).read_bytes() == before


def test_the_command_takes_results_and_another_place(bundle: Path, tmp_path: Path, evaluation_file: Path, comparison_file: Path) -> None:
    output = tmp_path / "new" / "page.html"
    arguments = ["report", str(bundle), "--output", str(output)]
    arguments += ["--evaluation", str(evaluation_file), "--evaluation", str(evaluation_file), "--comparison", str(comparison_file)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    page = output.read_text()
    assert page.count(">frechet distance<") == 2
    assert page.count("Schedule default, against fp32") == 1
    assert not (bundle / "local" / machine_name() / LOCAL_REPORT).exists()


def test_a_wrong_file_is_a_usage_error_and_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["report", str(bundle), "--output", str(tmp_path / "page.html"), "--evaluation", str(bundle / "plan.json")]
    )
    assert done.exit_code == 2
    assert "is not a valid result of `ptqd-run evaluate`" in done.output
    assert not (tmp_path / "page.html").exists()


def test_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "not a bundle" in done.output


def test_a_bundle_without_plan_or_statistics_is_an_error(tiny: TinyBundle, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tiny.folder), "--output", str(tmp_path / "page.html")])
    assert done.exit_code == 1
    assert "plan.json" in done.output


def test_writing_a_report_loads_no_framework(bundle: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom ptqd_export.report.write_report import write_report\n"
        f"write_report(Path({str(bundle)!r}))\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'diffusers', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_same_report_twice_is_the_same_file(bundle: Path, tmp_path: Path) -> None:
    one, other = (write_report(bundle, tmp_path / name).read_bytes() for name in ("one.html", "other.html"))
    assert one == other
