"""`ptqd-export report`: the report of a bundle with what was measured on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.bundle import Bundle
from engines.files import writable_folder, write_text
from engines.machine import machine_name
from ptqd_export.report.evidence import Evidence
from ptqd_export.report.page import report_page

REPORT = "report/index.html"
"""The portable one: without measured times, so that it is the same bytes wherever the bundle is built again."""

LOCAL_REPORT = "report.html"


def write_report(folder: Path, output: Path | None = None, evaluations: Sequence[Path] = (), comparisons: Sequence[Path] = ()) -> Path:
    """Write the report with times, evaluations and comparisons. The portable one stays as it is: the manifest has its hash.

    Args:
        folder: of the bundle.
        output: file to write; None is `report.html` in the bundle's folder for this machine.
        evaluations: files of `ptqd-run evaluate --json`.
        comparisons: files of `ptqd-run compare --json`.

    Raises:
        UsageError: there is no bundle, a file is not what it should be, or the output cannot be written.
        BundleError: the bundle is damaged.
    """
    bundle = Bundle.open(folder)
    path = output or folder / "local" / machine_name() / LOCAL_REPORT
    writable_folder(path.absolute().parent)
    write_text(path, report_page(bundle, Evidence.load(bundle, evaluations, comparisons)))
    return path
