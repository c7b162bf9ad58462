"""Changes the files of one schedule in a bundle, so that the bundle is whole at every moment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import FileRecord, write_manifest
from engines.host.files import sha256, write_text
from ptqd_export.records.stored_statistics import statistics_file


def store_schedule(bundle: Bundle, name: str, texts: Mapping[str, str]) -> None:
    """Replace the files of a schedule by `texts`, by file name; without texts, the schedule is removed.

    The files are written first and the manifest last. A replaced schedule leaves the manifest before its files change.
    """
    files = bundle.manifest.files
    statistics_folder = f"{PurePosixPath(statistics_file(bundle, name, 'any')).parent}/"
    replaced = {file for file in files if file == bundle.schedule_file(name) or file.startswith(statistics_folder)}
    kept = {file: record for file, record in files.items() if file not in replaced}
    if replaced:
        _write_manifest(bundle, kept)
    for file in replaced:
        (bundle.folder / file).unlink(missing_ok=True)
    for file, text in texts.items():
        write_text(bundle.folder / file, text)
    added = {file: FileRecord(sha256=sha256(bundle.folder / file), bytes=(bundle.folder / file).stat().st_size) for file in texts}
    if added:
        _write_manifest(bundle, kept | added)


def _write_manifest(bundle: Bundle, files: Mapping[str, FileRecord]) -> None:
    write_manifest(bundle.folder, bundle.whole.model_copy(update={"files": dict(files)}))
