"""`ptqd-export report`: write the report of a bundle, with what was measured on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.bundle.bundle import Bundle
from engines.host.files import writable_folder, write_text
from engines.host.machine import machine_name
from ptqd_export.records.bundle_lock import writing_to
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page

REPORT = "report/index.html"
"""The portable report. It has no measured times, so that rebuilding the bundle gives the same bytes anywhere."""

LOCAL_REPORT = "report.html"


def write_report(folder: Path, output: Path | None = None, evaluations: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> Path:
    """Write the report with times, evaluations and comparisons. The portable report stays unchanged: the manifest has its hash.

    Args:
        folder: folder of the bundle.
        output: file to write; None takes `report.html` in the bundle's folder for this machine.
        evaluations: files of `ptqd-run evaluate --json`.
        comparisons: files of `ptqd-run compare --json`.

    Raises:
        UsageError: there is no bundle, a file is not of the expected kind, or the output cannot be written.
        BundleError: a file of the bundle is missing or damaged.
        PtqdError: another process writes to the bundle.
    """
    bundle = Bundle.open(folder)
    bundle.check_files()
    if output is not None:
        return _write(bundle, output, evaluations, comparisons)
    with writing_to(folder):
        return write_local_report(folder, evaluations, comparisons)


def write_local_report(folder: Path, evaluations: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> Path:
    """Write the same report into the bundle's folder for this machine. The caller must hold the lock of the bundle."""
    return _write(Bundle.open(folder), folder / "local" / machine_name() / LOCAL_REPORT, evaluations, comparisons)


def _write(bundle: Bundle, path: Path, evaluations: Sequence[Path], comparisons: Sequence[Path]) -> Path:
    writable_folder(path.absolute().parent)
    write_text(path, report_page(bundle, Evidence.load(bundle, evaluations, comparisons)))
    return path
